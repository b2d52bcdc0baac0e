"""The door from Hydra: composition, help, and all that is wrong with a config at once, without torch.

Imports: config, plan, tokens, dialogs, evaluate.
Offers: entry (load, compose), written (to_yaml), usage, validate, inputs (are the files there), hardware (the
planner's constants for a run).
"""
