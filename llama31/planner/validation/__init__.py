"""Predictions held against published runs: what any stack needs and takes, row by row, and with families left out.

Imports: config, planner.
Offers: published (runs from a CSV), footprint (bytes by cause of any stack), accuracy (errors, row by row), fitting
(families left out).
"""
