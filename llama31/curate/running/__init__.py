"""Curation from end to end: stages in order, in processes of one machine or as arrays of Slurm, and what they did.

Imports: config, runs, and all blocks of curate; datatrove, xxhash.
Offers: stages (which there are, as plain data), blocks (a task's pipeline), tasks (one task, checked and recorded by
ledger), local (all of them in processes), folder (what was begun with which keys).
"""
