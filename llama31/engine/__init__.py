"""One optimizer step: Megatron's schedules over the chunks, DeepSpeed's ZeRO over data-parallel ranks.

Imports: config, data, dialogs, parallel, quantise, checkpoint, model.
Offers: pipeline (accumulate, apply, forward), zero, objectives, preference, reading, scoring, state, ema.
"""
