"""Tensors of all ranks on disk, whole or absent, and back on any layout.

Imports: config, runs, parallel.
Offers: shards, saver (behind the step), publish, manifest and checksum, retention.
"""
