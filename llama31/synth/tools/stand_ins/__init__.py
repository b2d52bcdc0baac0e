"""Tools that need nobody outside: what stands behind the names brave_search, wolfram_alpha and code_interpreter here.

Imports: sandbox, dialogs, synth.equality, synth.tools.interface.
Offers: search (a local index), interpreter (Python in the sandbox), algebra (by sympy, in a process of its own),
documents (readers of files).
"""
