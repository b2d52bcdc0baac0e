"""From HTML to text, with code, tables, lists and mathematics kept.

Imports: datatrove, resiliparse; nothing of ours.
Offers: nothing yet.
"""
