"""Documents on their way: what stands between two blocks, and between two stages.

Imports: datatrove, orjson, zstandard, xxhash; nothing of ours.
Offers: shards (documents in files), meters (what blocks let through and removed).
"""
