"""Which documents and lines to keep, by counts that need no model.

Imports: datatrove, numpy; llama31.curate.spans and words.
Offers: quality and repetition (Gopher's rules), c4 (C4's), coverage (lines of repeated content), token_counts and
divergence (documents unlike their language), languages (rules of those that English's do not fit).
"""
