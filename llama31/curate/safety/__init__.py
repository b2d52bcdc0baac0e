"""What must not go into a corpus: known domains, adult text, and what tells of a person.

Imports: datatrove, numpy, pyahocorasick, tldextract, xxhash; llama31.curate.words.
Offers: domains (block lists of hosts and URLs), adult (words that are counted), personal (e-mail, IP, phone, card, IBAN
and national identifiers, replaced), numbers (their published forms and checksums).
"""
