"""Code that models write, and what programs and judges say of it (report, section 4.3.1).

Imports: config, dialogs, sandbox, synth.pipeline.
Offers: execution (task code: solutions that pass tests, mended by what running them said), translation (translate_code:
the same program in another language), backtranslation (explain, document, debug, held against the original), review
(correctness and style by a judge). Beneath them: running (languages and checks), blocks (code of an answer), snippets
(what is read), comments (code without them).
"""
