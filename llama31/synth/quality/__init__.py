"""Which dialogs are worth learning from: rules, benchmarks, topic, difficulty, quality, meaning (report, 4.2.3).

Imports: config, runs, tokens, dialogs, sampling, curate (words, classifiers, encoders), report, and `synth.pipeline`.
Offers: filtering (all of it, in the order that is written there), and its parts: dialog_records, contamination,
questions (what a judge is asked) and asking (by shards), selection (best by reward or judge, order), embedding and
semantic (what says the same), page.
"""
