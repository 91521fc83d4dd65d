"""Front half of a Mamba block: projections and convolution before the scan, in one direction or both at once.

    x, z       = the halves of the input projection of hidden
    u          = silu(the convolution of x)
    low, B, C  = x_weight u
    delta      = dt_weight low

The reverse direction convolves with the steps ahead, so that no sequence is reversed. delta lacks its bias and
softplus, which are the scan's.

Source: state-spaces/mamba@e9594ce, mamba_ssm/ops/selective_scan_interface.py, MambaInnerFn.forward; both directions
hustvl/Vim@dd0358a, mamba-1p1p1/mamba_ssm/modules/mamba_simple.py, Mamba.forward.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from torch import Tensor

from scanlab.errors import ProblemError
from scanlab_kernels.causal_conv1d.arguments import check_weights
from scanlab_kernels.checks import expect
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


class InProjection:
    """Weight of the input projection: its first half gives the input of the convolution, its second half the gate.

    Args:
        weight: (2 dim, model).
        bias: (2 dim,) or None.

    Raises:
        ProblemError: Their shapes, dtypes or devices do not fit together.
    """

    def __init__(self, weight: PrepackedWeight, bias: Tensor | None = None) -> None:
        if weight.weight.dim() != 2 or weight.weight.shape[0] % 2:
            raise ProblemError(f"the input projection is {tuple(weight.weight.shape)}: must be (2 dim, model).")
        features, model = weight.weight.shape
        expect("the input projection", weight.weight, (features, model), weight.weight)
        if bias is not None:
            expect("the bias of the input projection", bias, (features,), weight.weight)
        self.weight, self.bias, self.dim, self.model = weight, bias, features // 2, model
        self.x, self.z = (PrepackedWeight(each) for each in weight.weight.split(self.dim))
        biases: tuple[Tensor | None, ...] = (None, None) if bias is None else bias.split(self.dim)
        self.x_bias, self.z_bias = biases


# hidden (batch, length, model) -> z, u, delta (batch, length, dim) and B, C (batch, length, state) of the forward
# direction, then u, delta, B and C of the reverse one where there are two
Front = Callable[[Tensor], tuple[Tensor, ...]]


class FrontWeights:
    """Weights of a whole front, and the fronts that were bound to them.

    Args:
        into: The input projection.
        directions: The forward direction, and the reverse one where there are two.

    Raises:
        ProblemError: They do not fit together.
    """

    def __init__(self, into: InProjection, *directions: DirectionWeights) -> None:
        for direction in directions:
            if direction.conv_weight.shape[0] != into.dim:
                raise ProblemError(
                    f"a direction is for {direction.conv_weight.shape[0]} channels: the projection has {into.dim}."
                )
        first, last = directions[0], directions[-1]
        if first.sizes != last.sizes or first.conv_weight.shape != last.conv_weight.shape:
            raise ProblemError("the directions have weights of different sizes: they must be alike.")
        self.into, self.directions = into, directions
        self._bound: dict[Hashable, Front] = {}

    def bound(self, key: Hashable, bind: Callable[[FrontWeights], Front]) -> Front:
        """Return the front called `key`, which is `bind` of these weights."""
        found = self._bound.get(key)
        if found is None:
            found = self._bound[key] = bind(self)
        return found


def check(hidden: Tensor, weights: FrontWeights) -> None:
    """Raise ProblemError unless these weights take hidden (batch, length, model)."""
    model = weights.into.model
    if hidden.dim() != 3 or hidden.shape[2] != model:
        raise ProblemError(f"hidden is {tuple(hidden.shape)}: must be (batch, length, {model}).")
    expect("hidden", hidden, tuple(hidden.shape), weights.into.weight.weight)
