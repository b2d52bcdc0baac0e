"""One step on a GPU: ours beside Megatron's own and transformers', what it spends its time on, and the card's ceilings.

`plan` says what is measured and in which order, `conductor` starts a process for each case, `worker` is that process
(`trainers`, `profiles`, `ceilings`, `micro`), `tables` writes down what came out. On a CPU the same code runs on small
shapes.
"""
