"""Implementations of state-space duality (Mamba-2), one file or folder each, simplest first.

    rank  backend        difference from the one before
    0     ssd_reference  the recurrence, one step at a time; the reference of all others in float64
    1     ssd_chunked    products of matrices within chunks, the state carried between them
    2     ssd_scan       the selective scan instead, with each head's rates and step sizes repeated
    3     ssd_compiled   the chunk of ssd_chunked compiled by torch
    4     ssd_native     the same products in C++, in registers, and everything around them in one pass

`problem` has the glossary, `op` the hard problems. The implementations in PyTorch share `operands` (operands and
epilogue of the recurrence) and `chunks` (the loop over chunks, with its gradient).
"""
