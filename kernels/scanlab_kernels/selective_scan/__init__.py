"""Implementations of the selective scan, one file each, simplest first.

    rank  backend      what it does that the one before does not
    0     reference    every decay and drive up front, then a Python loop over time; in float64 it is the oracle
    1     two_phase    the loop keeps only the recurrence, in place; one contraction makes all the outputs
    2     cpp_torch    the same loop in C++, one ATen call for each time step
    3     chunked      time-major chunks that stay in the cache, the state carried between them
    4     associative  within a chunk, 2 log2(chunk) wide steps instead of chunk narrow ones
    5     compiled     the chunk unrolled and fused by torch's code generator, states in registers within it
    6     native       C++ by hand: channels in the SIMD lanes, states in registers from the first step to the last
    7     triton       on a GPU: channels over the lanes of a warp, states in registers, both directions in one launch

Shared by the rungs written in PyTorch: `pointwise` (what happens before and after the recurrence), `directions`
(reverse and bidirectional scans out of a forward one), `recurrence` (solvers, and the gradient they share) and
`chunks` (the scan chunk by chunk); by those in C++: `extension` (compiling and loading).
README.md holds the mathematics, the derivations and what each rank costs.
"""
