"""Curation from end to end: stages in order, in processes of one machine or as arrays of Slurm, and what they did.

Imports: config, runs, and all blocks of curate; datatrove, xxhash.
Offers: stages (which there are, as plain data), blocks (a task's pipeline), tasks (one task, in attempts, checked and
recorded by ledger), local (all of them in processes, told by progress), folder (what was begun with which keys).
"""
