"""Triton kernels of the short convolution: whole sequences forward and backward, and the decoding step."""
