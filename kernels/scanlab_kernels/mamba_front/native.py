"""The front half of a Mamba block in one native op."""

from __future__ import annotations

import torch
from torch import Tensor

from scanlab_kernels.linear.native import multiplies
from scanlab_kernels.linear.op import is_plain
from scanlab_kernels.mamba_front.op import DirectionWeights, Projections, ScanArguments


def accepts(hidden: Tensor, into: Projections, directions: tuple[DirectionWeights, ...]) -> bool:
    """Return whether the op takes these: no gradient, one dtype that it multiplies, directions of one size."""
    weights = [into.x.weight, into.z.weight]
    others = [into.x_bias, into.z_bias]
    for each in directions:
        weights += each.x.weight, each.dt.weight
        others += each.conv_weight, each.conv_bias
    return (
        hidden.numel() > 0
        and all(weight.dtype == hidden.dtype for weight in weights)
        and is_plain(hidden, *weights, *others)
        and multiplies(hidden.dtype)
        and directions[0].sizes == directions[-1].sizes
    )


def mamba_front(
    hidden: Tensor, into: Projections, directions: tuple[DirectionWeights, ...]
) -> tuple[Tensor, tuple[ScanArguments, ...]]:
    """Return the gate z and the arguments of the scan of each direction."""
    rank, state, _ = directions[0].sizes
    z, *outs = torch.ops.scanlab_mixer.before_scan(
        *(hidden, into.x.native, into.x_bias, into.z.native, into.z_bias),
        *(each for direction in directions for each in _read(direction)),
        *([None] * (4 * (2 - len(directions)))),
        *(rank, rank + 2 * state),
    )
    arguments = []
    for index, direction in enumerate(directions):
        u, selected, delta = outs[3 * index : 3 * index + 3]
        _, B, C = selected.split_with_sizes(direction.sizes, 2)
        arguments.append(ScanArguments(u, delta, B, C))
    return z, tuple(arguments)


def _read(direction: DirectionWeights) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    return direction.conv_weight, direction.conv_bias, direction.x.native, direction.dt.native
