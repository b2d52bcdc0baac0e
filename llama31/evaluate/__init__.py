"""What a model knows: losses, choices, needles, answers, and how sure that is.

Imports: config, plan, runs, tokens, data, parallel, quantise, model, engine.
Offers: perplexity, choices and tasks, needle in haystack, gates, probe, generate, confidence.
"""
