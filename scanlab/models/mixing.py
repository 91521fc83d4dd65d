"""What a mixer computes around its scan, out of weights that have the official names, whoever made them.

Everything is kept dim-last, (batch, length, dim): that is how matrix products leave it, and the scan gets
transposed views of it, so nothing is copied on the way. The backward direction is not computed by reversing
sequences: its convolution looks ahead instead of back, and its scan walks from the last time step to the first.

Source: hustvl/Vim@dd0358a, mamba-1p1p1/mamba_ssm/modules/mamba_simple.py, Mamba.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Literal, Self

import torch
from torch import Tensor, nn

from scanlab.mixer import Derived, causal_conv1d, causal_conv1d_bidirectional, packed_linear
from scanlab.problem import ScanInputs


class Mixing(nn.Module):
    """The projections and convolutions of a mixer; inference keeps what it derives from their weights.

    Who inherits makes the weights, and gamma where the output is scaled. A backward direction has all of those
    with `_b` (bimamba_type v2), or A_b_log alone and shares the others (v1).
    """

    bimamba_type: str
    in_proj: nn.Linear
    conv1d: nn.Conv1d
    conv1d_b: nn.Conv1d
    out_proj: nn.Linear
    A_log: nn.Parameter
    A_b_log: nn.Parameter
    gamma: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        self._derived = defaultdict[str, Derived](Derived)

    def train(self, mode: bool = True) -> Self:
        """As in torch; what inference derived from the weights is dropped, for `.data` may change them unseen."""
        self._derived.clear()
        return super().train(mode)

    def projected(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What is convolved and the gate, each (batch, length, inner), of hidden (batch, length, dim)."""
        inner = len(self.A_log)
        # two matrix products instead of one that is split: x and z come out dense, and need no copy
        bias = (None, None) if self.in_proj.bias is None else self.in_proj.bias.split(inner)
        x, z = (
            packed_linear(self._derived[name], hidden, weight, part)
            for name, weight, part in zip("xz", self.in_proj.weight.split(inner), bias, strict=True)
        )
        return x, z

    def ahead(self, x: Tensor, z: Tensor) -> ScanInputs:
        """What is scanned ahead."""
        return self._scan_inputs(causal_conv1d(x.mT, *taps(self.conv1d), activation="silu").mT, z, "")

    def both_ways(self, x: Tensor, z: Tensor) -> tuple[ScanInputs, ScanInputs]:
        """What is scanned ahead, and what back, both in natural order of time."""
        if self.bimamba_type == "v1":
            ahead = self.ahead(x, z)
            return ahead, ahead.with_tensors(A=self._derived["A_b"](rates, self.A_b_log, x.dtype))
        u, u_back = causal_conv1d_bidirectional(x.mT, *taps(self.conv1d), *taps(self.conv1d_b), activation="silu")
        return self._scan_inputs(u.mT, z, ""), self._scan_inputs(u_back.mT, z, "_b")

    def _scan_inputs(self, u: Tensor, z: Tensor, suffix: Literal["", "_b"]) -> ScanInputs:
        """One direction's scan inputs in natural time order, views of the dim-last u, z and projections of u.

        The direction is told by what the names of its weights end with.
        """
        x_proj, dt_proj = (getattr(self, f"{name}{suffix}") for name in ("x_proj", "dt_proj"))
        A_log, D = getattr(self, f"A{suffix}_log"), getattr(self, f"D{suffix}")
        rank, state = dt_proj.weight.shape[1], A_log.shape[1]
        low_rank, B, C = packed_linear(self._derived[f"x_proj{suffix}"], u, x_proj.weight).split(
            [rank, state, state], dim=-1
        )
        return ScanInputs(
            u=u.mT,
            # the bias goes into the scan, before the softplus
            delta=packed_linear(self._derived[f"dt_proj{suffix}"], low_rank, dt_proj.weight).mT,
            A=self._derived[f"A{suffix}"](rates, A_log, u.dtype),
            B=B.mT,
            C=C.mT,
            D=as_scanned(D, u.dtype),
            z=z.mT,
            delta_bias=as_scanned(dt_proj.bias, u.dtype),
        )

    def mixed(self, y: Tensor, *, halves: bool) -> Tensor:
        """The output (batch, length, dim) for what was scanned, (batch, inner, length), or for half of it."""
        # halving the weight is halving the sum, on the smaller tensor; a bias is not halved
        scale = 0.5 if halves else 1.0
        out = packed_linear(self._derived["out"], y.mT, self.out_proj.weight, self.out_proj.bias, scale=scale)
        return out * self.gamma if hasattr(self, "gamma") else out


def widen(values: Tensor) -> Tensor:
    """`values` in at least float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def as_scanned(values: Tensor, dtype: torch.dtype) -> Tensor:
    """`values` in the dtype that a scan of inputs in `dtype` computes in."""
    return values.to(torch.promote_types(dtype, torch.float32))


def rates(A_log: Tensor, dtype: torch.dtype) -> Tensor:
    """A of a scan of inputs in `dtype`."""
    return -torch.exp(as_scanned(A_log, dtype))


def taps(convolution: nn.Conv1d) -> tuple[Tensor, Tensor | None]:
    """Weight (dim, width) and bias (dim,) of a depthwise convolution."""
    return convolution.weight[:, 0], convolution.bias
