"""What a document is in and what it is worth: language, quality, class of knowledge, and rank within a language.

Imports: datatrove; config, sampling and runs (labels from a chat model, pictures); reading, fast_text; torch and
transformers once an encoder is trained or applied.
Offers: language, quality (fastText scores); criteria and labels (of a chat model), training of an encoder on
them, encoder (its scores); knowledge (classes by either), calibration, ranking (the best of each language); kinds (what
models can be asked, before they are).
"""
