"""How fast: the cases of `recipes.benchmark` and the peers beside them. Nothing in the library imports this."""
