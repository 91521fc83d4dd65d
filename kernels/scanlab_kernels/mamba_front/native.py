"""The front half of a Mamba block in one native op."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from scanlab.contract.backend import Backend, OpFn
from scanlab.contract.cpu import pinned, threads_tunable
from scanlab.contract.space import Config, Space
from scanlab_kernels.build import PACKAGE, headers
from scanlab_kernels.cpu import extension
from scanlab_kernels.linear.native import PackedCapabilities, packed
from scanlab_kernels.mamba_front.op import FrontProblem, runner
from scanlab_kernels.mamba_front.weights import Front, FrontWeights

FOLDER = Path(__file__).parent


def op_arguments(weights: FrontWeights) -> tuple[Tensor | int | None, ...]:
    """Return the arguments of the op after hidden."""
    into, directions = weights.into, weights.directions
    rank, state, _ = directions[0].sizes
    given: list[Tensor | int | None] = [packed(into.x), into.x_bias, packed(into.z), into.z_bias]
    for each in directions:
        given += each.conv_weight, each.conv_bias, packed(each.x), packed(each.dt)
    given += [None] * (12 - len(given))
    return (*given, rank, rank + 2 * state)


def bind(weights: FrontWeights) -> Front:
    """Return the front with these weights, as one op of hidden."""
    op = extension.ops.mamba_front
    directions = weights.directions
    sizes, given = directions[0].sizes, op_arguments(weights)

    def front(hidden: Tensor) -> tuple[Tensor, ...]:
        z, u, selected, delta, u_reverse, selected_reverse, delta_reverse = op(hidden, *given)
        _, B, C = selected.split_with_sizes(sizes, 2)
        if len(directions) == 1:
            return z, u, delta, B, C
        _, B_reverse, C_reverse = selected_reverse.split_with_sizes(sizes, 2)
        return z, u, delta, B, C, u_reverse, delta_reverse, B_reverse, C_reverse

    return front


def make(problem: FrontProblem, config: Config) -> OpFn:
    """Return the fused front; compile it on the first use on a machine."""
    extension.load()
    return pinned(runner("native", bind), int(config["threads"]))


backend = Backend(
    name="mamba_front_native",
    summary="one op in C++: projections stay in the cache until they are convolved",
    rank=1,
    sources=(
        Path(__file__),
        *headers(FOLDER),
        *headers(PACKAGE / "linear"),
        *headers(PACKAGE / "causal_conv1d"),
        *headers(PACKAGE / "cpu"),
        FOLDER / "native.cpp",
    ),
    space=Space((threads_tunable(),)),
    capabilities=PackedCapabilities(),
    make=make,
    unavailable=extension.unavailable,
    op="mamba_front",
)
