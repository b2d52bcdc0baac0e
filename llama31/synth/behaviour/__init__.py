"""How a model behaves: what it knows, system prompts that it obeys, what it refuses and what it should not.

Imports: config, dialogs, sampling, synth.pipeline.
Offers: factuality, steerability, safety, guard (capabilities of recipes.synthesize).
"""
