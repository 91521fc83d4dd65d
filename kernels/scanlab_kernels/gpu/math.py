# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Arithmetic of the GPU kernels: exponentials on the special-function unit, everything else by multiply-adds.

Each state update needs an exponential, for a warp of which the special-function unit takes eight clocks of a scheduler:
this limits the forward scan. So all that multiply-adds can compute is kept from that unit. Softplus and sigmoid share
one exponential, e = exp(-|x|) in (0, 1], where log(1 + e) / e and 1 / (1 + e) are smooth: a polynomial and two Newton
steps are accurate to float32 (largest relative error of either: 2.5e-7). There is no branch, and softplus needs no
threshold, because above 20 the second term vanishes in the sum.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load(pointers, mask):
    """Load in float32; zero if the mask is false."""
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def shrink(x):
    """Return exp(-|x|)."""
    return tl.exp2(tl.abs(x) * -LOG2_E)


@triton.jit
def softplus(x, e):
    """Return log(1 + exp(x)), given e = exp(-|x|)."""
    p = 0.00523262424 * e - 0.0295049567
    p = p * e + 0.0782254934
    p = p * e - 0.13663207
    p = p * e + 0.191059887
    p = p * e - 0.248429775
    p = p * e + 0.333190948
    p = p * e - 0.499994934
    p = p * e + 0.99999994
    return p * e + tl.maximum(x, 0.0)


@triton.jit
def sigmoid(x, e):
    """Return 1 / (1 + exp(-x)), given e = exp(-|x|)."""
    d = 1.0 + e
    r = (0.32322704 * d - 1.45452938) * d + 2.12120053
    r = r * (1.0 - d * r) + r
    r = r * (1.0 - d * r) + r
    return tl.where(x < 0.0, e * r, r)


@triton.jit
def exp2_by_products(x):
    """Return 2^x by multiply-adds: the nearest integer goes to the exponent, a polynomial gives the rest."""
    x = tl.minimum(tl.maximum(x, -126.0, propagate_nan=tl.PropagateNan.ALL), 127.5, propagate_nan=tl.PropagateNan.ALL)
    shifted = x + 12582912.0  # 1.5 * 2^23: the last bits of the sum are the nearest integer
    f = x - (shifted - 12582912.0)
    p = 0.001327646663 * f + 0.009675540961
    p = p * f + 0.05550713465
    p = p * f + 0.2402212024
    p = p * f + 0.693146944
    p = p * f + 1.000000119
    return (p.to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)).to(tl.float32, bitcast=True)
