"""Duplicates by URL, by document (MinHash) and by line, each within a language, on any number of tasks.

Imports: datatrove, numpy, xxhash; reading.
Offers: urls (in stages), removal (the filter that drops what was listed), preference (which of several stays), shards
and merging (the files between the stages).
"""
