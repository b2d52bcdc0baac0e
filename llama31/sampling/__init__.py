"""Answers to prompts, from any server or model, one line each.

Imports: config, runs, tokens, dialogs.
Offers: prompts, drawing, servers and pool, dialects (of servers), filters and checks.
"""
