"""Dialogs on long documents (report, section 4.3.4): what is asked is about a chunk, what is trained holds the whole.

Imports: config, tokens, dialogs, runs, synth.pipeline, synth.grounding, synth.labelled.
Offers: questions, summaries, repositories (capabilities of recipes.synthesize); lengths (tokens, chunks, buckets),
imports (which file of a repository imports which), mixing (how often long dialogs are read beside short ones).
"""
