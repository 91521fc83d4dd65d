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
from scanlab.mixer.causal_conv1d import causal_conv1d, causal_conv1d_bidirectional, check
from scanlab.mixer.checks import expect
from scanlab.mixer.derived import keeps
from scanlab.mixer.packed_linear import Packed, multiplies, packed_linear, packs


class Direction(NamedTuple):
    """The weights of one direction.

    conv_weight, conv_bias  (dim, width) and (dim,)
    x                       (rank + 2 state, dim)
    dt                      (dim, rank)
    """

    conv_weight: Tensor
    conv_bias: Tensor | None
    x: Packed
    dt: Packed


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
        _check(x, direction)
    if _fuses(x, directions):
        return _fused(x, ahead, back)
    if back is None:
        us: tuple[Tensor, ...] = (causal_conv1d(x.mT, ahead.conv_weight, ahead.conv_bias, activation="silu"),)
    else:
        us = causal_conv1d_bidirectional(
            x.mT, ahead.conv_weight, ahead.conv_bias, back.conv_weight, back.conv_bias, activation="silu"
        )
    return tuple(_of(u.mT, direction) for u, direction in zip(us, directions, strict=True))


def _check(x: Tensor, of: Direction) -> None:
    check(x.mT, of.conv_weight, of.conv_bias, "silu")
    rank, selected = of.dt.weight.shape[1], len(of.x.weight)
    if selected < rank or (selected - rank) % 2:
        raise ProblemError(f"x has {selected} rows and dt the rank {rank}: x must have rank + 2 state rows.")
    expect("x", of.x.weight, (selected, x.shape[2]), x)
    expect("dt", of.dt.weight, (x.shape[2], rank), x)


def _of(u: Tensor, direction: Direction) -> Selected:
    low_rank, B, C = _split(packed_linear(u, direction.x), direction)
    return Selected(u, packed_linear(low_rank, direction.dt), B, C)


def _fuses(x: Tensor, directions: tuple[Direction, ...]) -> bool:
    return (
        all(packs(x, each.x.weight) and keeps(each.dt.weight) for each in directions)
        and multiplies(x.dtype)
        and keeps(*(tensor for each in directions for tensor in each[:2] if tensor is not None))
    )


def _fused(x: Tensor, ahead: Direction, back: Direction | None) -> tuple[Selected, ...]:
    outs = torch.ops.scanlab_mixer.before_scan(
        x,
        *_as_read(ahead),
        *((None, None, None, None) if back is None else _as_read(back)),
        ahead.dt.weight.shape[1],
        len(ahead.x.weight),
    )
    directions = ((ahead, outs[:3]),) if back is None else ((ahead, outs[:3]), (back, outs[3:]))
    found = []
    for direction, (u, selected, delta) in directions:
        _, B, C = _split(selected, direction)
        found.append(Selected(u, delta, B, C))
    return tuple(found)


def _as_read(of: Direction) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    return of.conv_weight, of.conv_bias, of.x.native, of.dt.native


def _split(selected: Tensor, of: Direction) -> tuple[Tensor, ...]:
    rank = of.dt.weight.shape[1]
    state = (len(of.x.weight) - rank) // 2
    return selected.split_with_sizes((rank, state, state), 2)
