"""Checkpoints to and from other forms of the same weights.

Imports: config, plan, tokens, parallel, quantise, checkpoint, model, engine.
Offers: checkpoints (Hugging Face, Meta), consolidated, fp8 (for servers), average, pretrained (into a live model).
"""
