"""Jobs of Slurm, alone and in chains.

Imports: config, plan, runs, evaluate, command.
Offers: jobs, bills, chains (from YAML to checked jobs), submission of what is left, sbatch (what its options mean).
"""
