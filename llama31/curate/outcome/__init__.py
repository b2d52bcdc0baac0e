"""What a curation has come to, from what its tasks recorded.

Imports: runs, report, tokens, running.
Offers: sources (the `data/` YAML of what was packed), summary (report.json) and page (report.html).
"""
