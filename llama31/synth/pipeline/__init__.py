"""The steps that all capabilities share: items in, a program of draws and checks for each, records with provenance out.

Imports: config, runs, tokens, dialogs, sampling, report.
Offers: items (what is read), prompt_files (what is sent), chat_models (who answers), draw (what a program may do),
journal (so that a killed one goes on), shard (many programs at once), gather (files, counts and a page of all shards).
"""
