"""Checkpoints to and from other forms of the same weights.

Imports: config, tokens, parallel, checkpoint, model, engine.
Offers: checkpoints (Hugging Face, Meta), consolidated, average, pretrained (into a live model).
"""
