"""Shapes and gradients of the residual add with a norm, for its C++ and its Triton kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scanlab_kernels.cpu.registration import MIXER_CURE, refuse_gradients, register_gradients, register_shapes


def empty_outputs(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    wide_total: bool,
) -> tuple[Tensor, Tensor]:
    """Return empty dense tensors like the normalised sum and the sum."""
    dtype = torch.float32 if wide_total and hidden.dtype != torch.float64 else hidden.dtype
    return hidden.new_empty(hidden.shape), hidden.new_empty(hidden.shape, dtype=dtype)


def empty_gradients(
    grad_out: Tensor, grad_total: Tensor | None, total: Tensor, weight: Tensor, eps: float, centred: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return empty tensors like the gradients of the sum, and, in at least float32, of the weight and of a bias."""
    dtype = torch.float64 if total.dtype == torch.float64 else torch.float32
    grad_weight, grad_bias = (weight.new_empty(weight.shape, dtype=dtype) for _ in range(2))
    return total.new_empty(total.shape), grad_weight, grad_bias


def keep_total(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep the sum as it was returned, and the weight, for the backward pass."""
    hidden, residual, weight, bias, ctx.eps, ctx.centred, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], weight)
    ctx.dtypes = [None if each is None else each.dtype for each in (hidden, residual, weight, bias)]


def gradients(backward: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """Return a function of a context and the gradients of the results: those of the arguments, by the op `backward`."""

    def compute(ctx: Any, grad_out: Tensor | None, grad_total: Tensor | None) -> tuple[Any, ...]:
        total, weight = ctx.saved_tensors
        grad, grad_weight, grad_bias = grad_total, None, None
        if grad_out is not None:
            grad, grad_weight, grad_bias = backward(grad_out, grad_total, total, weight, ctx.eps, ctx.centred)
        as_given = (
            None if each is None or dtype is None else each.to(dtype)
            for each, dtype in zip((grad, grad, grad_weight, grad_bias), ctx.dtypes, strict=True)
        )
        return *as_given, None, None, None

    return compute


def register() -> None:
    """Register gradients and shapes of the C++ ops."""
    ops = torch.ops.scanlab_mixer
    register_shapes(ops.add_norm.default, empty_outputs)
    register_shapes(ops.add_norm_backward.default, empty_gradients)
    backward = refuse_gradients(ops.add_norm_backward.default, MIXER_CURE)
    register_gradients(ops.add_norm.default, keep_total, gradients(backward), MIXER_CURE)
