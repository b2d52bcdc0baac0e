"""Tensors of all ranks on disk, whole or absent, and back on any layout.

Imports: config, runs, parallel.
Offers: shards, saver (behind the step), publish and listing, manifest and checksum, retention.
"""
