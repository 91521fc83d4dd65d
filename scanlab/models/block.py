"""A block of Vision Mamba: add, normalise, mix; with the official rules about which dtype each step runs in.

Source: hustvl/Vim@dd0358a, vim/models_mamba.py, Block; mamba-1p1p1/mamba_ssm/ops/triton/layer_norm.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanlab.models.mamba_block import Mixer
from scanlab.models.mamba_weights import widen
from scanlab.runtime.ops import add_norm as fused_add_norm

if TYPE_CHECKING:
    from scanlab.runtime.dispatch import Scan


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def parts(self) -> tuple[Tensor, Tensor | None, float, Literal["rms", "layer"]]:
        """Return weight, bias, epsilon and kind."""
        return self.weight, None, self.eps, "rms"

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., dim) normalised; computed in at least float32, returned in the dtype of x."""
        wide = widen(x)
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """torch's LayerNorm, which takes inputs wider than its weights."""

    def parts(self) -> tuple[Tensor, Tensor | None, float, Literal["rms", "layer"]]:
        """Return weight, bias, epsilon and kind."""
        return self.weight, self.bias, self.eps, "layer"

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., dim) normalised; computed in at least float32, returned in the dtype of x."""
        wide = widen(x)
        weight, bias = self.weight.to(wide.dtype), self.bias.to(wide.dtype)
        return F.layer_norm(wide, self.normalized_shape, weight, bias, self.eps).to(x.dtype)


def add_norm(
    hidden: Tensor, residual: Tensor | None, norm: RMSNorm | LayerNorm, *, fused: bool, residual_in_fp32: bool
) -> tuple[Tensor, Tensor]:
    """Return the normalised sum of hidden and residual, and the sum itself, which is the next residual.

    Fused is the arithmetic of the official fused kernel: it normalises the sum before rounding it, and
    rounds the result to the dtype of hidden. Unfused, the sum is rounded to the dtype of the weights first.
    In float32 there is no difference.
    """
    if fused:
        weight, bias, eps, kind = norm.parts()
        return fused_add_norm(hidden, residual, weight, bias, eps=eps, kind=kind, residual_in_fp32=residual_in_fp32)
    total = hidden if residual is None else residual + hidden
    return norm(total.to(norm.weight.dtype)), widen(total) if residual_in_fp32 else total


class DropPath(nn.Module):
    """In training, drops whole samples of a branch with probability `rate` and scales up the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """Return branch (batch, ...) with whole items of the batch dropped in training."""
        if not self.training or self.rate == 0.0:
            return branch
        keep = 1.0 - self.rate
        kept = branch.new_empty(len(branch), *(1,) * (branch.dim() - 1)).bernoulli_(keep)
        return branch * (kept / keep)


class Block(nn.Module):
    """Add, normalise, mix; the next block adds the result."""

    def __init__(
        self, mixer: Mixer, norm: RMSNorm | LayerNorm, *, drop_path_rate: float, fused: bool, residual_in_fp32: bool
    ) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm = norm
        self.drop_path = DropPath(drop_path_rate)
        self.fused = fused
        self.residual_in_fp32 = residual_in_fp32

    @property
    def is_fused(self) -> bool:
        """True where the block is the fused norm and the mixer alone: no path is dropped."""
        return self.fused and not (self.training and self.drop_path.rate)

    def forward(self, hidden: Tensor, residual: Tensor | None, scan: Scan) -> tuple[Tensor, Tensor]:
        """Return the next hidden and residual (batch, length, dim); the residual is None in the first block."""
        if residual is not None and self.training:
            hidden = self.drop_path(hidden)
        normed, residual = add_norm(
            hidden, residual, self.norm, fused=self.fused, residual_in_fp32=self.residual_in_fp32
        )
        return self.mixer(normed, scan), residual
