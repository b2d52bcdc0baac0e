"""What a run will cost before it is paid for: step time and memory by cause, days, money, held against published runs.

Imports: config, plan, failures.
Offers: workloads (a layout at work), products (matrix products by shape), speed (seconds of a step by cause), search
(the fastest layouts that fit), proposals (what is told of them), timeline (a step played out), phases (a whole run),
validation (published runs beside what is predicted of them).
"""
