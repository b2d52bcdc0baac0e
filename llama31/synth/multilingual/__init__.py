"""Languages beside English (report, section 4.3.2): answers in the language that was asked for, data by templates,
translated quantitative reasoning.

Imports: config, sampling, curate, synth.pipeline, synth.equality.
Offers: languages (names, and whether an answer's is the one that its prompt asks for), digits (numbers of a text in
any notation), templates (task=templates: parallel text and tasks as dialogs), reasoning (task=translate_reasoning).
"""
