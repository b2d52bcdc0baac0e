"""Jobs of Slurm, alone and in chains.

Imports: config, plan, failures, planner, runs, evaluate, command.
Offers: jobs, predicted (what the planner expects of a run), bills, chains (from YAML to checked jobs),
submission of what is left, sbatch (what its options mean).
"""
