"""Rounds of sampling, rewarding and training, in this process or as jobs.

Imports: config, runs, slurm, command, sampling, judging.
Offers: rounds, chain.
"""
