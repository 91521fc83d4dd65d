"""Implementations of the selective scan, one file or folder each, simplest first.

    rank  backend      difference from the one before
    0     reference    all decays and drives, then a loop over time in Python; the reference of all others in float64
    1     two_phase    only the recurrence in the loop, in place; one contraction for all outputs
    2     cpp_torch    the same loop in C++, one ATen call per time step
    3     chunked      time-major chunks that stay in the cache and pass on their last state
    4     associative  2 log2(chunk) wide steps within a chunk instead of chunk narrow ones
    5     compiled     the chunk unrolled and fused by torch's code generator, states in registers
    6     native       hand-written C++: channels in SIMD lanes, states in registers from the first step to the last
    7     triton       on a GPU: channels in the lanes of a warp, states in registers, both directions in one launch

The PyTorch implementations share `discretize` (operands and epilogue of the recurrence), `bidirectional` (reverse and
bidirectional scans), `recurrence` (solvers and their gradient) and `chunked_scan`. The mathematics, the derivations
and the cost of each implementation are in README.md, one folder up.
"""
