"""From token files to the rows of a step, a pure function of seed, step, data, schedule and decisions.

Imports: config, plan, tokens.
Offers: mixture, stream and whole (documents in rows), plans of them, batches, prefetch.
"""
