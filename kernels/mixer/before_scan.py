"""What a mixer computes between its projection in and its scan, in one direction or both at once.

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
from scanlab.mixer.causal_conv1d import causal_conv1d, causal_conv1d_bidirectional, check_weights
from scanlab.mixer.checks import expect
from scanlab.mixer.packed_linear import Packed, has_few_rows, is_ours, multiplies, packed_linear


class Direction:
    """The weights of one direction.

    conv_weight, conv_bias  (dim, width) and (dim,)
    x                       (rank + 2 state, dim)
    dt                      (dim, rank)
    Raises ProblemError where their shapes, dtypes or devices do not fit together.
    """

    def __init__(self, conv_weight: Tensor, conv_bias: Tensor | None, x: Packed, dt: Packed) -> None:
        dim, selected, rank = conv_weight.shape[0], x.weight.shape[0], dt.weight.shape[-1]
        check_weights(dim, conv_weight, conv_bias, conv_weight)
        if selected < rank or (selected - rank) % 2:
            raise ProblemError(f"x has {selected} rows and dt the rank {rank}: x must have rank + 2 state rows.")
        expect("x", x.weight, (selected, dim), conv_weight)
        expect("dt", dt.weight, (dim, rank), conv_weight)
        self.conv_weight, self.conv_bias, self.x, self.dt = conv_weight, conv_bias, x, dt
        self.sizes = rank, (selected - rank) // 2, (selected - rank) // 2


class Selected(NamedTuple):
    """What one direction scans: u and delta (batch, length, dim), B and C (batch, length, state)."""

    u: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor


def before_scan(x: Tensor, ahead: Direction, back: Direction | None = None) -> tuple[Selected, ...]:
    """What each direction scans, in natural order of time, of x (batch, length, dim).

    In one native op where no gradient is wanted on a CPU, in float32 or, where the machine multiplies it, bfloat16;
    else composed of its parts, which are differentiable. delta lacks its bias and softplus, which are the scan's.
    Raises ProblemError, before anything is computed, where shapes, dtypes or devices do not fit.
    """
    directions = (ahead,) if back is None else (ahead, back)
    for direction in directions:
        if x.dim() != 3 or x.shape[2] != direction.conv_weight.shape[0]:
            raise ProblemError(f"x is {tuple(x.shape)}: must be (batch, length, {direction.conv_weight.shape[0]}).")
        expect("x", x, x.shape, direction.conv_weight)
    if _fuses(x, directions):
        return _fused(x, ahead, back)
    if back is None:
        us: tuple[Tensor, ...] = (causal_conv1d(x.mT, ahead.conv_weight, ahead.conv_bias, activation="silu"),)
    else:
        us = causal_conv1d_bidirectional(
            x.mT, ahead.conv_weight, ahead.conv_bias, back.conv_weight, back.conv_bias, activation="silu"
        )
    return tuple(_of(u.mT, direction) for u, direction in zip(us, directions, strict=True))


def _of(u: Tensor, direction: Direction) -> Selected:
    low_rank, B, C = packed_linear(u, direction.x).split_with_sizes(direction.sizes, 2)
    return Selected(u, packed_linear(low_rank, direction.dt), B, C)


def _fuses(x: Tensor, directions: tuple[Direction, ...]) -> bool:
    for each in directions:
        if not (
            x.dtype == each.x.weight.dtype == each.dt.weight.dtype
            and is_ours(x, each.conv_weight, each.conv_bias, each.x.weight, each.dt.weight)
        ):
            return False
    return not has_few_rows(x) and multiplies(x.dtype) and directions[0].sizes == directions[-1].sizes


def _fused(x: Tensor, ahead: Direction, back: Direction | None) -> tuple[Selected, ...]:
    weights = (*_as_read(ahead), *((None, None, None, None) if back is None else _as_read(back)))
    rank, state, _ = ahead.sizes
    outs = torch.ops.scanlab_mixer.before_scan(x, *weights, rank, rank + 2 * state)
    directions = (outs[:3],) if back is None else (outs[:3], outs[3:])
    found = []
    for u, selected, delta in directions:
        _, B, C = selected.split_with_sizes(ahead.sizes, 2)
        found.append(Selected(u, delta, B, C))
    return tuple(found)


def _as_read(of: Direction) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    return of.conv_weight, of.conv_bias, of.x.native, of.dt.native
