"""Gradients, shapes for tracing, and vmap rules of the native ops."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scanlab.contract.forks import has_forked
from scanlab.contract.problem import ScanInputs
from scanlab_kernels import flop_formulas
from scanlab_kernels.cpu.registration import refuse_gradients, register_gradients, register_shapes
from scanlab_kernels.selective_scan.arguments import TENSORS, directions, keep_inputs

TIME_BLOCK = TENSORS + 3  # after softplus, reverse and threads


# Advice of the errors on derivatives that do not exist.
CURE = "take the backend that has all of them, `reference`, by its name or with SCANLAB_BACKEND=reference."


def register() -> None:
    """Register gradients, shapes and vmap rules of the C++ ops."""
    ops = torch.ops.scanlab
    if has_forked():
        ops.note_fork()
    backward = refuse_gradients(ops.scan_backward.default, CURE)
    refuse_gradients(ops.scan.default, CURE)  # it kept no checkpoints
    register_gradients(ops.scan_with_checkpoints.default, keep_inputs, functools.partial(gradients, backward), CURE)
    for name, shapes in (
        ("scan", scan_shapes),
        ("scan_with_checkpoints", scan_with_checkpoints_shapes),
        ("scan_backward", scan_backward_shapes),
    ):
        op = getattr(ops, name)
        register_shapes(op.default, shapes)
        torch.library.register_vmap(f"scanlab::{name}", functools.partial(one_by_one, op))
    flop_formulas.count("scanlab")


def gradients(
    backward: Callable[..., Any], ctx: Any, grad_out: Tensor | None, grad_last: Tensor | None, grad_checkpoints: None
) -> tuple[Any, ...]:
    """Return the gradients of `scan_with_checkpoints`, one for each of its arguments, by the op `backward`."""
    checkpoints, *tensors = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(tensors[0])
    found = backward(grad_out, grad_last, checkpoints, *tensors, *ctx.settings)
    return (*found, *(None,) * len(ctx.settings))


def one_by_one(op: Any, info: Any, axes: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
    """Return the results of `op` for each entry of the mapped axes, stacked, and the mapped axis of each result."""
    results = [
        op(*(value if axis is None else value.select(axis, entry) for value, axis in zip(arguments, axes, strict=True)))
        for entry in range(info.batch_size)
    ]
    stacked = tuple(None if each[0] is None else torch.stack(each) for each in zip(*results, strict=True))
    return stacked, tuple(None if each is None else 0 for each in stacked)


def scan_shapes(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Return empty tensors like the outputs of `scan`."""
    inputs = directions(arguments)
    u, A = inputs[0].u, inputs[0].A
    shape = (u.shape[0], *A.shape)
    return torch.empty_like(u), A.new_empty((2, *shape) if len(inputs) == 2 else shape)


def scan_with_checkpoints_shapes(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return empty tensors like the outputs of `scan_with_checkpoints`."""
    inputs = directions(arguments)
    u, A = inputs[0].u, inputs[0].A
    batch, dim, length = u.shape
    time_block = arguments[TIME_BLOCK]
    blocks = (length + time_block - 1) // time_block
    numbers = A.shape[1] * (2 if A.is_complex() else 1)
    checkpoints = A.new_empty((len(inputs), batch, blocks, numbers, dim), dtype=A.dtype.to_real())
    return (*scan_shapes(*arguments), checkpoints)


def scan_backward_shapes(
    grad_out: Tensor, grad_last: Tensor | None, checkpoints: Tensor, *arguments: Any
) -> tuple[Tensor | None, ...]:
    """Return empty tensors like the gradients that `scan_backward` returns: None for a tensor that is None."""
    results: list[Tensor | None] = []
    for inputs in directions(arguments):
        for name, tensor in zip(ScanInputs._fields, inputs, strict=True):
            if tensor is None:
                results.append(None)
            elif name in ("B", "C") and tensor.dim() > 2:
                state, columns = tensor.shape[-2:]
                length = inputs.u.shape[-1]
                by_time = tensor.new_empty((*tensor.shape[:-2], length, state, columns // length))
                results.append(by_time.transpose(-3, -2).flatten(-2))
            elif name in ("u", "delta", "z"):
                results.append(torch.empty_like(tensor))
            else:
                results.append(tensor.new_empty(tensor.shape))
    return (*results, *(None,) * (TENSORS - len(results)))
