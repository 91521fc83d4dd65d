"""Fused front half of a Mamba block: projections and convolution before the scan."""
