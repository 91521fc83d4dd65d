"""What a mixer computes between its input and its scan, in one direction or both at once.

    x, z       = the projections of hidden
    u          = silu(the convolution of x)
    low, B, C  = x_weight u
    delta      = dt_weight low

The direction back convolves ahead of the present step instead of behind it, so nothing is turned round.

Source: state-spaces/mamba@e9594ce, mamba_ssm/ops/selective_scan_interface.py, MambaInnerFn.forward; both directions
hustvl/Vim@dd0358a, mamba-1p1p1/mamba_ssm/modules/mamba_simple.py, Mamba.forward.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scanlab.errors import ProblemError
from scanlab_kernels.causal_conv1d.op import causal_conv1d, causal_conv1d_bidirectional, check_weights
from scanlab_kernels.checks import expect
from scanlab_kernels.linear.packed_linear import PrepackedWeight, has_few_rows, is_ours, multiplies, packed_linear


class DirectionWeights:
    """The weights of one direction.

    conv_weight, conv_bias  (dim, width) and (dim,)
    x                       (rank + 2 state, dim)
    dt                      (dim, rank)
    Raises ProblemError where their shapes, dtypes or devices do not fit together.
    """

    def __init__(self, conv_weight: Tensor, conv_bias: Tensor | None, x: PrepackedWeight, dt: PrepackedWeight) -> None:
        dim, selected, rank = conv_weight.shape[0], x.weight.shape[0], dt.weight.shape[-1]
        check_weights(dim, conv_weight, conv_bias, conv_weight)
        if selected < rank or (selected - rank) % 2:
            raise ProblemError(f"x has {selected} rows and dt the rank {rank}: x must have rank + 2 state rows.")
        expect("x", x.weight, (selected, dim), conv_weight)
        expect("dt", dt.weight, (dim, rank), conv_weight)
        self.conv_weight, self.conv_bias, self.x, self.dt = conv_weight, conv_bias, x, dt
        self.sizes = rank, (selected - rank) // 2, (selected - rank) // 2


class ScanArguments(NamedTuple):
    """What one direction scans: u and delta (batch, length, dim), B and C (batch, length, state)."""

    u: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor


class Projections:
    """The weights of what is projected of a mixer's input: x, which is convolved, and the gate z.

    x, z            (dim, model)
    x_bias, z_bias  (dim,)
    Raises ProblemError where their shapes, dtypes or devices do not fit together.
    """

    def __init__(
        self, x: PrepackedWeight, z: PrepackedWeight, x_bias: Tensor | None = None, z_bias: Tensor | None = None
    ) -> None:
        dim, model = x.weight.shape
        for name, weight, bias in (("x", x.weight, x_bias), ("z", z.weight, z_bias)):
            expect(name, weight, (dim, model), x.weight)
            if bias is not None:
                expect(f"the bias of {name}", bias, (dim,), x.weight)
        self.x, self.z, self.x_bias, self.z_bias = x, z, x_bias, z_bias

    def convolved(self, hidden: Tensor) -> Tensor:
        """x (..., dim) of hidden (..., model)."""
        return packed_linear(hidden, self.x, self.x_bias)

    def gate(self, hidden: Tensor) -> Tensor:
        """z (..., dim) of hidden (..., model)."""
        return packed_linear(hidden, self.z, self.z_bias)


def before_scan(
    hidden: Tensor, into: Projections, ahead: DirectionWeights, back: DirectionWeights | None = None
) -> tuple[Tensor, tuple[ScanArguments, ...]]:
    """The gate z (batch, length, dim), and what each direction scans in natural order of time.

    hidden  (batch, length, model)
    In one native op where no gradient is wanted on a CPU, in float32 or, where the machine multiplies it, bfloat16;
    else composed of its parts, which are differentiable. delta lacks its bias and softplus, which are the scan's.
    Raises ProblemError, before anything is computed, where shapes, dtypes or devices do not fit.
    """
    directions = (ahead,) if back is None else (ahead, back)
    dim, model = into.x.weight.shape
    if hidden.dim() != 3 or hidden.shape[2] != model:
        raise ProblemError(f"hidden is {tuple(hidden.shape)}: must be (batch, length, {model}).")
    expect("hidden", hidden, hidden.shape, into.x.weight)
    for direction in directions:
        if direction.conv_weight.shape[0] != dim:
            raise ProblemError(f"a direction is for {direction.conv_weight.shape[0]} channels: x has {dim}.")
    if _fuses(hidden, into, directions):
        return _fused(hidden, into, ahead, back)
    x = into.convolved(hidden).mT
    if back is None:
        us: tuple[Tensor, ...] = (causal_conv1d(x, ahead.conv_weight, ahead.conv_bias, activation="silu"),)
    else:
        us = causal_conv1d_bidirectional(
            x, ahead.conv_weight, ahead.conv_bias, back.conv_weight, back.conv_bias, activation="silu"
        )
    selected = tuple(_of(u.mT, direction) for u, direction in zip(us, directions, strict=True))
    return into.gate(hidden), selected


def _of(u: Tensor, direction: DirectionWeights) -> ScanArguments:
    low_rank, B, C = packed_linear(u, direction.x).split_with_sizes(direction.sizes, 2)
    return ScanArguments(u, packed_linear(low_rank, direction.dt), B, C)


def _fuses(hidden: Tensor, into: Projections, directions: tuple[DirectionWeights, ...]) -> bool:
    weights = [into.x.weight, into.z.weight]
    others = [into.x_bias, into.z_bias]
    for each in directions:
        weights += each.x.weight, each.dt.weight
        others += each.conv_weight, each.conv_bias
    return (
        not has_few_rows(hidden)
        and all(weight.dtype == hidden.dtype for weight in weights)
        and is_ours(hidden, *weights, *others)
        and multiplies(hidden.dtype)
        and directions[0].sizes == directions[-1].sizes
    )


def _fused(
    hidden: Tensor, into: Projections, ahead: DirectionWeights, back: DirectionWeights | None
) -> tuple[Tensor, tuple[ScanArguments, ...]]:
    rank, state, _ = ahead.sizes
    weights = (*_as_read(ahead), *((None, None, None, None) if back is None else _as_read(back)))
    z, *outs = torch.ops.scanlab_mixer.before_scan(
        hidden, into.x.native, into.x_bias, into.z.native, into.z_bias, *weights, rank, rank + 2 * state
    )
    directions = (outs[:3],) if back is None else (outs[:3], outs[3:])
    found = []
    for u, selected, delta in directions:
        _, B, C = selected.split_with_sizes(ahead.sizes, 2)
        found.append(ScanArguments(u, delta, B, C))
    return z, tuple(found)


def _as_read(of: DirectionWeights) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    return of.conv_weight, of.conv_bias, of.x.native, of.dt.native
