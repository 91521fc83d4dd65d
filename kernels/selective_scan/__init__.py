"""Implementations of the selective scan, one file each, simplest first.

    reference     every decay and drive up front, then a Python loop over time; in float64 it is the oracle

Shared by the implementations written in PyTorch: `pointwise` (what happens before and after the recurrence)
and `directions` (reverse and bidirectional scans out of a forward one). README.md holds the derivations.
"""
