"""From HTML to text, with code, tables, lists and mathematics kept.

Imports: datatrove, resiliparse; nothing of ours.
Offers: page (a page to its text; the block of the pipeline), marks (what a page's source holds), structure (what is
mended in the parsed page), mathematics (formulas to TeX), markdown (its markers removed).
"""
