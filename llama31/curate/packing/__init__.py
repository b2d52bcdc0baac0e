"""Documents to the token files of pre-training.

Imports: config, tokens, passage.
Offers: tokenized (a task's documents to ids, all tasks' ids to packed sources, a vocabulary).
"""
