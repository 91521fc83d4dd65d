"""Fused front half of a Mamba block: what lies between its input and its scan, in one direction or both at once.

    x, z       = the projections of hidden
    u          = silu(the convolution of x)
    low, B, C  = x_weight u
    delta      = dt_weight low

The reverse direction convolves with the steps ahead, so that no sequence is reversed. delta lacks its bias and
softplus, which are the scan's.

Source: state-spaces/mamba@e9594ce, mamba_ssm/ops/selective_scan_interface.py, MambaInnerFn.forward; both directions
hustvl/Vim@dd0358a, mamba-1p1p1/mamba_ssm/modules/mamba_simple.py, Mamba.forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from scanlab.errors import ProblemError
from scanlab_kernels.causal_conv1d.op import check_weights
from scanlab_kernels.checks import expect
from scanlab_kernels.linear.prepacked import Linear
from scanlab_kernels.linear.weights import PrepackedWeight


class DirectionWeights:
    """Weights of one direction.

    Args:
        conv_weight: (dim, width).
        conv_bias: (dim,) or None.
        x: (rank + 2 state, dim).
        dt: (dim, rank).

    Raises:
        ProblemError: Their shapes, dtypes or devices do not fit together.
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
    """Arguments of the scan of one direction: u and delta (batch, length, dim), B and C (batch, length, state)."""

    u: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor


# hidden (batch, length, model) -> the gate z (batch, length, dim), and the arguments of the scan of each direction
Front = Callable[[Tensor], tuple[Tensor, tuple[ScanArguments, ...]]]


class Projections:
    """Weights of the input projections: x, which is convolved, and the gate z.

    Args:
        x, z: (dim, model).
        x_bias, z_bias: (dim,) or None.

    Raises:
        ProblemError: Their shapes, dtypes or devices do not fit together.
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


def check(hidden: Tensor, into: Projections, directions: tuple[DirectionWeights, ...]) -> None:
    """Raise ProblemError unless these weights take hidden (batch, length, model)."""
    dim, model = into.x.weight.shape
    if hidden.dim() != 3 or hidden.shape[2] != model:
        raise ProblemError(f"hidden is {tuple(hidden.shape)}: must be (batch, length, {model}).")
    expect("hidden", hidden, hidden.shape, into.x.weight)
    for direction in directions:
        if direction.conv_weight.shape[0] != dim:
            raise ProblemError(f"a direction is for {direction.conv_weight.shape[0]} channels: x has {dim}.")


def compose(
    linear: Linear,
    convolve: Callable[..., tuple[Tensor, Tensor]],
    into: Projections,
    directions: tuple[DirectionWeights, ...],
) -> Front:
    """Return the front composed of products and convolutions, differentiable where these are.

    Args:
        linear: An implementation of `linear`.
        convolve: An implementation of `causal_conv1d`.
    """
    weights = [each for direction in directions for each in (direction.conv_weight, direction.conv_bias)]
    weights += [None] * (4 - len(weights))

    def front(hidden: Tensor) -> tuple[Tensor, tuple[ScanArguments, ...]]:
        x = linear(hidden, into.x, into.x_bias).mT
        arguments = []
        for u, direction in zip(convolve(x, *weights, None, None, True), directions, strict=False):
            by_time = u.mT
            low_rank, B, C = linear(by_time, direction.x, None).split_with_sizes(direction.sizes, 2)
            arguments.append(ScanArguments(by_time, linear(low_rank, direction.dt, None), B, C))
        return linear(hidden, into.z, into.z_bias), tuple(arguments)

    return front
