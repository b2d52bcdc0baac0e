"""Dialogs of several turns that call functions, each part played by a model in a role of its own (report, 4.3.5).

Imports: config, tokens, synth.pipeline, synth.grounding, synth.labelled, synth.tools (definitions, function_calls,
interface, trajectories).
Offers: dialogs (the capability), on domains (what dialogs are about, no two alike), apis (functions as a model defines
them, and what they may return), messages (what the assistant may write), talk (a dialog as it grows).
"""
