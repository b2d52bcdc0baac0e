"""What a run will cost before it is paid for: step time and memory by cause, held against published runs.

Imports: config, plan.
Offers: workloads (a layout at work), products (matrix products by shape), speed (seconds of a step by cause),
footprint (bytes by cause of any stack), published (runs from a CSV), accuracy (errors, row by row), fitting (families
left out), search (the fastest layouts that fit), proposals (what is told of them).
"""
