"""What stands in a run folder beside checkpoints, and how it is read again.

Imports: config.
Offers: files (whole or not at all), attempts, metrics (the record), views of it, plots, measured.
"""
