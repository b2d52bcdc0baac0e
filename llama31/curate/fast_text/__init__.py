"""fastText's models: trained so that no number of them stays unset, known again by a record, and read only if whole.

Imports: fastText; words; runs.
Offers: model (train, load, ask, and how a text becomes the line that the library takes), whole (whether a file is).
"""
