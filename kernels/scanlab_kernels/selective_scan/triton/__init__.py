"""Selective scan in Triton."""
