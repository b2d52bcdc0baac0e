"""Dialogs that call tools (report, section 4.3.5): search, Python, algebra; files; functions mined from code.

Calls are what the model writes, results are what a tool gives: a model's own "result" is refused. Prompts say in plain
text how to call, so that any chat model can begin; the records have the calls of Llama 3.1's format (tokens.chat).

Imports: config, tokens, dialogs, sandbox, synth.pipeline, synth.grounding, synth.labelled, synth.equality.
Offers: single, multi, files, function_calls, roles (capabilities of recipes.synthesize); interface (what a tool is),
steps (what a model writes), trajectories (steps and results as a dialog, and pairs of single messages), definitions
(functions of Python code as JSON), stand_ins (a local index, Python in the sandbox, algebra, readers of files), and
services (Brave and Wolfram|Alpha themselves).
"""
