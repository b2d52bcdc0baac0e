"""Jobs of Slurm, alone and in chains.

Imports: config, plan, evaluate, command.
Offers: jobs (bills, submission), sbatch (what its options mean).
"""
