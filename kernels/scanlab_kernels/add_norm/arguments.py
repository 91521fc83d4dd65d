"""Residual add with RMSNorm or LayerNorm, fused.

    total = hidden + residual
    out   = (total - mean) / sqrt(mean((total - mean)^2) + eps) * weight + bias        # RMSNorm: without the means

Sum, statistics and affine are computed in float32 (float64 for float64), and each result is rounded once. As upstream,
the gradient is taken at the total that is returned, after its rounding.

Source: state-spaces/mamba@e9594ce, mamba_ssm/ops/triton/layer_norm.py, layer_norm_fn with prenorm.
"""

from __future__ import annotations

from torch import Tensor

from scanlab.errors import ProblemError
from scanlab_kernels.checks import expect, wide


def check(hidden: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, kind: str) -> None:
    """Check the arguments of `add_norm`.

    Raises:
        ProblemError: A shape, dtype, device or `kind` does not fit.
    """
    if hidden.dim() == 0:
        raise ProblemError("hidden has no axis to normalise over: must be (..., dim).")
    dim = hidden.shape[-1]
    expect("hidden", hidden, tuple(hidden.shape), hidden)
    expect("weight", weight, (dim,), hidden)
    if bias is not None:
        expect("bias", bias, (dim,), hidden)
    if residual is not None:
        expect("residual", residual, tuple(hidden.shape), hidden)
        if residual.dtype not in (hidden.dtype, wide(hidden).dtype):
            raise ProblemError(f"residual is {residual.dtype}: must be {hidden.dtype}, as hidden, or its float32 form.")
    if kind not in ("rms", "layer"):
        raise ProblemError(f"kind={kind!r}: must be 'rms' or 'layer'.")
