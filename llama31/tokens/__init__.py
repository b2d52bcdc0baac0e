"""From text to token ids on disk.

Imports: config, runs.
Offers: tokenizers, chat and its template; sources, pack and the .bin/.idx of Megatron (indexed, packed).
"""
