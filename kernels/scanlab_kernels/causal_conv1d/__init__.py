"""Depthwise causal convolution over time."""
