"""Scaling laws (report, section 3.2.1): small runs to plan, and what they say of a large one.

Imports: config, plan, runs, report (its reader of run folders), command, slurm.
Offers: family (models of a ladder), ladder (its runs), scripts (configs, jobs, bill), observations (what was measured),
resampling (intervals), isoflop and parametric (compute-optimal tokens), forecast (accuracy), mixing (of data).
"""
