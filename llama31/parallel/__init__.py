"""Processes and how they are laid out: the owner of Megatron's parallel_state and of gloo.

Imports: config.
Offers: mesh (TP, CP, PP, DP), collectives beside the step, cpu (what Megatron lacks there).
"""
