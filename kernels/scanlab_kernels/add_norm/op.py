"""Residual add with RMSNorm or LayerNorm, fused: sum, statistics and affine in float32, each result rounded once.

    total = hidden + residual
    out   = (total - mean) / sqrt(mean((total - mean)^2) + eps) * weight + bias        # RMSNorm: without the means

Source: state-spaces/mamba@e9594ce, mamba_ssm/ops/triton/layer_norm.py, layer_norm_fn with prenorm; as there the
gradient is taken at the total that is returned, after its rounding.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from scanlab.errors import ProblemError
from scanlab.runtime.serving import ops_for
from scanlab_kernels.checks import expect, wide


def add_norm(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    kind: Literal["rms", "layer"] = "rms",
    residual_in_fp32: bool = False,
) -> tuple[Tensor, Tensor]:
    """The normalised sum of hidden and residual, and the sum itself, which is the next residual.

    hidden        (..., dim)
    residual      the shape of hidden, in its dtype or in float32; None adds nothing
    weight, bias  (dim,), any floating dtype
    Returns out in the dtype of hidden, and total in float32 if residual_in_fp32, else in the dtype of hidden
    (float64 stays float64). Differentiable in all tensors.
    Raises ProblemError, before anything is computed, where shapes, dtypes or devices do not fit.
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
    ops = ops_for(hidden)
    if ops is not None:
        result: tuple[Tensor, Tensor] = ops.add_norm(
            hidden, residual, weight, bias, eps, kind == "layer", residual_in_fp32
        )
        return result
    return add_norm_reference(hidden, residual, weight, bias, eps=eps, kind=kind, residual_in_fp32=residual_in_fp32)


def add_norm_reference(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    kind: Literal["rms", "layer"] = "rms",
    residual_in_fp32: bool = False,
) -> tuple[Tensor, Tensor]:
    """`add_norm` in PyTorch."""
    total = wide(hidden) if residual is None else wide(hidden) + residual
    centred = total - total.mean(-1, keepdim=True) if kind == "layer" else total
    normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight.to(total.dtype)
    if bias is not None:
        normed = normed + bias.to(total.dtype)
    return normed.to(hidden.dtype), total if residual_in_fp32 else total.to(hidden.dtype)
