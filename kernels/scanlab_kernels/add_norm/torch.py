"""Residual add with normalisation in PyTorch, differentiable: the reference."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from scanlab_kernels.add_norm.op import call
from scanlab_kernels.checks import wide
from scanlab_kernels.implementations import TORCH


def add_norm(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    wide_total: bool,
) -> tuple[Tensor, Tensor]:
    """Return the normalised sum of hidden and residual, and the sum.

    Args:
        hidden: (..., dim).
        residual: The shape of hidden, or None.
        weight: (dim,).
        bias: (dim,), or None.
        eps: Added to the mean square.
        centred: LayerNorm instead of RMSNorm.
        wide_total: Return the sum in at least float32 instead of the dtype of hidden.
    """
    total = wide(hidden) if residual is None else wide(hidden) + residual
    values = total - total.mean(-1, keepdim=True) if centred else total
    normed = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps) * weight.to(total.dtype)
    if bias is not None:
        normed = normed + bias.to(total.dtype)
    return normed.to(hidden.dtype), total if wide_total else total.to(hidden.dtype)


backend = TORCH.backend("add_norm", call, Path(__file__).parent, "torch.py")
