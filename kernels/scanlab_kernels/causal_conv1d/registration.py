"""Shapes and gradients of the short convolution, for its C++ and its Triton kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scanlab_kernels.cpu.registration import (
    MIXER_CURE,
    ignore_gradients,
    refuse_gradients,
    register_gradients,
    register_shapes,
)


def empty_outputs(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, weight_reverse: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    """Return empty tensors like the forward and the reverse output; without elements where there is no weight."""
    out, out_reverse = (x.new_empty(0) if each is None else torch.empty_like(x) for each in (weight, weight_reverse))
    return out, out_reverse


def empty_gradients(grad: Tensor | None, grad_reverse: Tensor | None, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Return empty tensors like the gradients of x, of both weights and biases, and of the initial states."""
    *weights, _, initial_states, _ = rest
    return (
        torch.empty_like(x),
        *(x.new_empty(0) if each is None else torch.empty_like(each) for each in (*weights, initial_states)),
    )


def empty_step(x: Tensor, *rest: Any) -> Tensor:
    """Return an empty tensor like the output of a step."""
    return torch.empty_like(x)


def keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep the inputs for the backward pass."""
    ctx.save_for_backward(*inputs[:-1])
    ctx.silu = inputs[-1]


def gradients(backward: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """Return a function of a context and the gradients of the results: those of the arguments, by the op `backward`."""

    def compute(ctx: Any, grad: Tensor, grad_reverse: Tensor) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors
        given = (None if tensors[1] is None else grad, None if tensors[3] is None else grad_reverse)
        found = backward(*given, *tensors, ctx.silu)
        by_weights = (None if tensor is None else each for tensor, each in zip(tensors[1:5], found[1:5], strict=True))
        return (found[0], *by_weights, None, None if tensors[6] is None else found[5], None)

    return compute


def register() -> None:
    """Register gradients and shapes of the C++ ops."""
    ops = torch.ops.scanlab_mixer
    register_shapes(ops.causal_conv1d.default, empty_outputs)
    register_shapes(ops.causal_conv1d_backward.default, empty_gradients)
    register_shapes(ops.causal_conv1d_update.default, empty_step)
    backward = refuse_gradients(ops.causal_conv1d_backward.default, MIXER_CURE)
    register_gradients(ops.causal_conv1d.default, keep_inputs, gradients(backward), MIXER_CURE)
    ignore_gradients(ops.causal_conv1d_update.default, MIXER_CURE)
