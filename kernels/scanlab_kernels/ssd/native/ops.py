"""Gradients and shapes for tracing of the native ops of ssd."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scanlab.contract.forks import has_forked
from scanlab_kernels import flop_formulas
from scanlab_kernels.cpu.registration import refuse_gradients, register_gradients, register_shapes
from scanlab_kernels.ssd.problem import SsdInputs

# The arguments that `backward` returns gradients of, in this order.
DIFFERENTIATED = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")
SUMMED = ("A", "B", "C", "D", "dt_bias")  # over a first axis, of sequences or of tasks
TENSORS = len(SsdInputs._fields)
CURE = "take the backend `ssd_reference`, by its name or with SCANLAB_BACKEND=ssd_reference."


def register() -> None:
    """Register gradients and shapes of the C++ ops."""
    ops = torch.ops.scanlab_ssd
    if has_forked():
        ops.note_fork()
    register_shapes(ops.forward.default, forward_shapes)
    register_shapes(ops.backward.default, backward_shapes)
    backward = refuse_gradients(ops.backward.default, CURE)
    register_gradients(ops.forward.default, keep, functools.partial(gradients, backward), CURE)
    flop_formulas.count("scanlab_ssd")


def forward_shapes(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return empty tensors like the results of `forward`; what is not kept has no elements."""
    batch, length, heads, head_dim = x.shape
    chunk, keeps_states = min(others[-4], length), others[-1]
    states = (batch, (length + chunk - 1) // chunk, heads, B.shape[-1], head_dim) if keeps_states else (0,)
    ungated = x.shape if keeps_states and z is not None else (0,)
    last = A.new_empty(batch, heads, head_dim, B.shape[-1])
    return x.new_empty(x.shape), last, A.new_empty(states), x.new_empty(ungated)


def backward_shapes(
    grad_out: Tensor,
    grad_final: Tensor | None,
    chunk_states: Tensor,
    ungated: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    *others: Any,
) -> tuple[Tensor, ...]:
    """Return empty tensors like the results of `backward`; parts of a sum have an axis of their own in front."""
    batch, length, heads, head_dim = x.shape
    task_heads = min(others[-2], heads)
    groups, state = B.shape[2:]
    parts = ((heads // groups + task_heads - 1) // task_heads, batch, length, groups, state)
    grad_A, grad_B, grad_C, grad_D, grad_dt_bias, grad_initial = map(
        A.new_empty,
        ((batch, heads), parts, parts, (batch, heads, head_dim), (batch, heads), (batch, heads, head_dim, state)),
    )
    grad_x, grad_dt, grad_z = x.new_empty(x.shape), dt.new_empty(dt.shape), x.new_empty(0 if z is None else z.shape)
    return grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_z, grad_dt_bias, grad_initial


def keep(ctx: Any, arguments: tuple[Any, ...], results: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """Keep the tensors, the settings, the states before each chunk and the ungated output for the gradients."""
    *settings, keeps_states = arguments[TENSORS:]
    if not keeps_states:
        raise NotImplementedError("scanlab_ssd::forward has gradients with keeps_states=True only.")
    ctx.set_materialize_grads(False)  # outputs that nothing used would get zeros as large as they are
    ctx.save_for_backward(*results[2:], *arguments[:TENSORS])
    ctx.settings = settings


def gradients(
    backward: Callable[..., Any], ctx: Any, grad_out: Tensor | None, grad_final: Tensor | None, *of_kept: None
) -> tuple[Any, ...]:
    """Return the gradients of `forward`, one for each of its arguments, by the op `backward`."""
    chunk_states, ungated, *tensors = ctx.saved_tensors
    inputs = SsdInputs(*tensors)._asdict()
    if grad_out is None:
        grad_out = torch.zeros_like(inputs["x"])
    found = backward(grad_out, grad_final, chunk_states, ungated, *tensors, *ctx.settings)
    by_name = dict(zip(DIFFERENTIATED, found, strict=True))
    for name in SUMMED:
        by_name[name] = by_name[name].sum(0)
    if inputs["D"] is not None and inputs["D"].dim() == 1:
        by_name["D"] = by_name["D"].sum(1)
    of_inputs = (
        None if each is None or name not in by_name else by_name[name].to(each.dtype) for name, each in inputs.items()
    )
    return *of_inputs, *[None] * (len(ctx.settings) + 1)
