"""Answers to prompts, from any server or model, one line each.

Imports: config, runs, tokens, dialogs.
Offers: prompts, drawing, servers and pool, capability_probe (of servers), filters and verifiers.
"""
