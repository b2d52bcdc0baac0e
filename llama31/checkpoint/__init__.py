"""Tensors of all ranks on disk, whole or absent, and back on any layout.

Imports: config, runs, parallel.
Offers: shards (over index and dcp), saver (behind the step), publish and listing, manifest and checksum, retention.
"""
