"""Llama 3.1 on Megatron's blocks: the owner of Megatron's layers and of Transformer Engine.

Imports: config, plan, parallel, quantise.
Offers: llama (build, shards), sequences, attention and kernels, head and its loss, precision, versions.
"""
