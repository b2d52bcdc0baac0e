"""FP8 by its rules: formats and scales, linear layers that round as FP8 does on any device, what delayed scaling keeps.

Imports: config, parallel.
Offers: formats (rounding), twin (layers), delayed (scales and their history).
"""
