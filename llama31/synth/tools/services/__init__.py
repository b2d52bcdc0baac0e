"""The services themselves behind brave_search and wolfram_alpha: asked over the network, for a key and for money.

Imports: config, sampling (its Refused, and ledgers), synth.pipeline, synth.tools.interface.
Offers: brave, wolfram (tools of `interface.OutsideTool`), on client (key, pace, attempts) and answered (what was sent
and answered, on disk: nothing is asked twice, and no more than the budget).
"""
