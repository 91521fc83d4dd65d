"""The front half of a Mamba block: one fused op, or composed of the products and convolutions that serve."""

from __future__ import annotations

import time

from torch import Tensor

from scanlab.runtime import usage
from scanlab.runtime.dispatch import serving_now
from scanlab.runtime.dispatcher import Bound
from scanlab.runtime.implementations import is_in_torch
from scanlab.runtime.ops import convolve, plan_convolution
from scanlab.runtime.products import Rows, linear, plan_linear
from scanlab.runtime.traced import is_traced
from scanlab_kernels.linear.weights import is_plain
from scanlab_kernels.mamba_front import composed
from scanlab_kernels.mamba_front.composed import Parts, compose
from scanlab_kernels.mamba_front.op import FrontProblem, inputs_of
from scanlab_kernels.mamba_front.weights import Front, FrontWeights, check


def mamba_front(hidden: Tensor, weights: FrontWeights) -> tuple[Tensor, ...]:
    """Return the operands of a block's scan, in order of time: z, then u, delta, B and C of each direction.

    Args:
        hidden: (batch, length, model).
        weights: Weights of the front, for one direction or two.

    Returns:
        z, u and delta (batch, length, dim), B and C (batch, length, state); then u, delta, B and C of the reverse
        direction. Differentiable where a gradient is wanted.

    Raises:
        ProblemError: Shapes, dtypes or devices do not fit; nothing was computed.
    """
    bound = bound_front(hidden, weights)
    if bound is None:
        return compose(_live_parts(), weights)(hidden)
    if not usage.active():
        return _front_of(bound, hidden, weights)(hidden)
    front = compose(_live_parts(), weights) if _is_composed(bound) else _front_of(bound, hidden, weights)
    start = time.perf_counter()
    outputs = front(hidden)
    if bound.problem is not None:
        for each in usage.active():
            each.add(bound.problem, time.perf_counter() - start)
    return outputs


def plan_front(hidden: Tensor, weights: FrontWeights) -> Front:
    """Return the implementation of `mamba_front` with these weights, for inputs of the kind of `hidden`.

    Raises:
        ProblemError: Shapes, dtypes or devices do not fit.
    """
    bound = bound_front(hidden, weights)
    return compose(_live_parts(), weights) if bound is None else _front_of(bound, hidden, weights)


def bound_front(hidden: Tensor, weights: FrontWeights) -> Bound | None:
    """Return the front that was decided for; None if it is composed of parts that look at each input anew."""
    check(hidden, weights)
    into, directions = weights.into, weights.directions
    read = [into.weight.weight, *(each.weight for direction in directions for each in (direction.x, direction.dt))]
    others = [into.bias, *(each for direction in directions for each in (direction.conv_weight, direction.conv_bias))]
    if (
        is_traced()
        or is_in_torch()
        or not hidden.numel()
        or any(weight.dtype != hidden.dtype for weight in read)
        or not is_plain(hidden, *read, *others)
    ):
        return None
    inputs = inputs_of(hidden, weights)
    shapes = [each if each is None else each.shape for each in inputs[:-1]]
    return serving_now().bound_to((FrontProblem, hidden.dtype, *shapes), lambda: FrontProblem.of(inputs))


def _is_composed(bound: Bound) -> bool:
    """Return whether the front is composed of the choices for its parts."""
    return bound.decision.backend == composed.backend.name and bound.decision.basis in ("named", "default", "fallback")


def _front_of(bound: Bound, hidden: Tensor, weights: FrontWeights) -> Front:
    if _is_composed(bound):
        return compose(_planned_parts(hidden, weights), weights)
    function, rest = bound.function, inputs_of(hidden, weights)[1:]
    kind = type(inputs_of(hidden, weights))

    def front(hidden: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = function(kind(hidden, *rest))
        return outputs

    return front


def _live_parts() -> Parts:
    return Parts(linear, linear, linear, convolve)


def _planned_parts(hidden: Tensor, weights: FrontWeights) -> Parts:
    into, direction = weights.into, weights.directions[0]
    rows = Rows(hidden.numel() // hidden.shape[-1], hidden.dtype)
    return Parts(
        plan_linear(rows, into.weight),
        plan_linear(rows, direction.x),
        plan_linear(rows, direction.dt),
        plan_convolution(hidden, weights),
    )
