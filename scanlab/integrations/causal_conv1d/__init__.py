"""Modules that stand in for those of `causal_conv1d`."""
