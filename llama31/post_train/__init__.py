"""Rounds of sampling, rewarding and training, in this process or as jobs.

Imports: config, slurm, sampling, judging.
Offers: rounds.
"""
