"""From text to token ids on disk.

Imports: config, runs.
Offers: tokenizer, chat and its template; sources, pack and the .bin/.idx of Megatron (indexed, packed).
"""
