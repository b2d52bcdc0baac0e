"""From raw pages to a corpus (report, section 3.1), as blocks of datatrove that could be used without the rest.

Imports: datatrove, which no other package does; of ours, `running` and `outcome` alone: config, runs, report, tokens.
Offers: reading (archives and files to documents), extraction (HTML to text), duplicates (by URL, document and line),
heuristics (rules that need no model), safety (domains, adult text, personal data), scoring (language and quality),
words (the tokenizer of all blocks that count words) and spans (the same, without making strings of them), codes (names
of languages), running (all of it in stages), outcome (what it has come to).
"""
