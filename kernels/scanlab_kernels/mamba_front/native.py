"""The front half of a Mamba block in one native op."""

from __future__ import annotations

import torch
from torch import Tensor

from scanlab_kernels.linear.native import multiplies, packed
from scanlab_kernels.linear.weights import is_plain
from scanlab_kernels.mamba_front.op import DirectionWeights, Front, Projections, ScanArguments


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


def bind(into: Projections, directions: tuple[DirectionWeights, ...]) -> Front:
    """Return the front with these weights, as one op of hidden."""
    op = torch.ops.scanlab_mixer.mamba_front.default
    rank, state, _ = sizes = directions[0].sizes
    weights = [packed(into.x), into.x_bias, packed(into.z), into.z_bias]
    for each in directions:
        weights += each.conv_weight, each.conv_bias, packed(each.x), packed(each.dt)
    weights += [None] * (12 - len(weights))

    def front(hidden: Tensor) -> tuple[Tensor, tuple[ScanArguments, ...]]:
        z, *outs = op(hidden, *weights, rank, rank + 2 * state)
        u, selected, delta = outs[:3]
        _, B, C = selected.split_with_sizes(sizes, 2)
        forward = ScanArguments(u, delta, B, C)
        if len(directions) == 1:
            return z, (forward,)
        u, selected, delta = outs[3:]
        _, B, C = selected.split_with_sizes(sizes, 2)
        return z, (forward, ScanArguments(u, delta, B, C))

    return front
