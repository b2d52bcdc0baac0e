"""Processes and how they are laid out: the owner of Megatron's parallel_state and of gloo.

Imports: config.
Offers: mesh (TP, CP, PP, DP), collectives beside the step, replica (one reads for all), cpu (what Megatron lacks).
"""
