"""Mamba-2 in C++."""
