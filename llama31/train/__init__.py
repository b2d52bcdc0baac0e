"""The one loop, and what it needs.

Imports: everything above: resilience, evaluate, checkpoint, engine, model, data, dialogs.
Offers: setup (placed, setup), loop (fit), training_state, feeds (what a recipe trains on), reference, outset.
"""
