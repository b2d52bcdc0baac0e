"""Sections of `recipes.synthesize`, one for each task; `synthesis` puts them together.

Imports: config.keys.
Offers: reasoning (mathematics, languages beside English), long_context, tools.
"""
