"""Data that models write and programs check (report, sections 4.2.3 and 4.3): one package a capability.

Imports: config, runs, tokens, dialogs, sampling, sandbox, report.
Offers: pipeline (an item's program, its journal, shards, what is gathered of them), and capabilities on it.
"""
