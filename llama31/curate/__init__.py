"""From raw pages to a corpus (report, section 3.1), as blocks of datatrove that could be used without the rest.

Imports: datatrove, which no other package does; nothing of ours.
Offers: reading (archives and files to documents), extraction (HTML to text), duplicates (by URL, document and line),
words (the tokenizer of all blocks that count words).
"""
