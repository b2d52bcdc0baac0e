"""Code of any of our languages, parsed, linted, tested and run, in the sandbox alone.

Imports: config, sandbox, synth.pipeline.
Offers: languages (how each is checked and run), specimens (a right solution with tests in each), results (what tests
say of themselves), checking (what programs say of code), bench (which languages work here, and checks as steps of an
item's program).
"""
