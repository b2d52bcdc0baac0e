"""What failures cost a long run: its stops by cause, and where its seconds go.

Imports: config, plan.
Offers: causes (rates, and what they cost to first order), simulation (events of one run), results (means over many of
them, and what each key buys), tables.
"""
