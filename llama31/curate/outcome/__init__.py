"""What a curation has come to, from what its tasks recorded.

Imports: config, runs, running.
Offers: sources (the `data/` YAML of what was packed).
"""
