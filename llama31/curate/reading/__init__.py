"""From archives and files to documents with url, date, source and language, or counted by kind.

Imports: datatrove; nothing of ours.
Offers: nothing yet.
"""
