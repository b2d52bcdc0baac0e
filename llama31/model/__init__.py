"""Llama 3.1 on Megatron's blocks: the owner of Megatron's layers and of Transformer Engine.

Imports: config, parallel.
Offers: llama (build, shards), attention and kernels, head and its loss, precision, versions.
"""
