"""Duplicates by URL, by document (MinHash) and by line, each within a language, on any number of tasks.

Imports: datatrove, numpy, xxhash; reading, words.
Offers: urls, signatures -> buckets -> clusters, and lines (stages that find duplicates), removal (the filter that drops
what was listed), preference (which of several stays), components (of a graph), shards and merging (the files between).
"""
