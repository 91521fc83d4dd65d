"""Blocks of a model, one after another, as one op."""
