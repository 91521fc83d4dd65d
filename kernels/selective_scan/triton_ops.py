"""The scan's GPU kernels as torch ops: with shapes for tracing and gradients for autograd.

`scanlab::triton_scan` computes, `scanlab::triton_scan_with_checkpoints` also keeps what its gradients need,
and `scanlab::triton_scan_backward` returns them: of the inputs that are there, in their order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scanlab.kernels import triton_launch
from scanlab.kernels.scan_ops import TENSORS, directions
from scanlab.kernels.triton_launch import Gradients, Outputs, Task, Tuning
from scanlab.problem import ScanInputs

FIRST = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C"
ABSENT = ", ".join(f"Tensor? {name}" for name in ScanInputs._fields[5:])
SECOND = ", ".join(f"Tensor? {name}_back" for name in ScanInputs._fields)
ARGUMENTS = f"{FIRST}, {ABSENT}, {SECOND}, bool delta_softplus, bool reverse, int[] tuning"


def task(arguments: tuple[Any, ...]) -> Task:
    """The scan that an op is called with."""
    delta_softplus, reverse, tuning = arguments[TENSORS:]
    return triton_launch.task(directions(arguments), delta_softplus, reverse, Tuning(*tuning))


def computed(arguments: tuple[Any, ...], keep: bool) -> Outputs:
    """What the forward kernels write."""
    launches, outputs = triton_launch.forward(task(arguments), keep)
    with torch.cuda.device_of(outputs.each):
        for launch in launches:
            launch.run()
    return outputs


def joined(outputs: Outputs) -> tuple[Tensor, Tensor]:
    """The output and the last state of a scan out of those of its directions."""
    if len(outputs.each) == 1:
        return outputs.each[0], outputs.last_state[0]
    return outputs.each[0] + outputs.each[1], outputs.last_state


@torch.library.custom_op("scanlab::triton_scan", mutates_args=(), schema=f"({ARGUMENTS}) -> (Tensor, Tensor)")
def scan(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The output and the last state."""
    return joined(computed(arguments, keep=False))


@torch.library.custom_op(
    "scanlab::triton_scan_with_checkpoints", mutates_args=(), schema=f"({ARGUMENTS}) -> (Tensor, Tensor, Tensor)"
)
def scan_with_checkpoints(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the last state, and the states before every chunk."""
    outputs = computed(arguments, keep=True)
    assert outputs.checkpoints is not None
    return (*joined(outputs), outputs.checkpoints)


@torch.library.custom_op(
    "scanlab::triton_scan_backward",
    mutates_args=(),
    schema=f"(Tensor grad_out, Tensor? grad_last, Tensor checkpoints, {ARGUMENTS}) -> Tensor[]",
)
def scan_backward(grad_out: Tensor, grad_last: Tensor | None, checkpoints: Tensor, *arguments: Any) -> list[Tensor]:
    """The gradients of the inputs that are there."""
    launches, gradients = triton_launch.backward(task(arguments), checkpoints, grad_out, grad_last)
    with torch.cuda.device_of(grad_out):
        for launch in launches:
            launch.run()
    results = []
    for inputs, found in zip(directions(arguments), gradients, strict=True):
        results += list(_summed(found, inputs).tensors().values())
    return results


def _summed(gradients: Gradients, inputs: ScanInputs) -> ScanInputs:
    """The parts added, in the shapes and dtypes of the inputs."""

    def projection(parts: Tensor, like: Tensor) -> Tensor:
        whole = parts.sum(0).to(like.dtype).mT
        return whole[:, 0] if like.dim() == 3 else whole

    return ScanInputs(
        u=gradients.u,
        delta=gradients.delta,
        A=gradients.A.sum(0).T,
        B=projection(gradients.B, inputs.B),
        C=projection(gradients.C, inputs.C),
        D=None if gradients.D is None else gradients.D.sum(0),
        z=gradients.z,
        delta_bias=None if gradients.delta_bias is None else gradients.delta_bias.sum(0),
        initial_state=gradients.initial_state,
    )


@scan.register_fake
def scan_shapes(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Empty tensors like the outputs of `scan`."""
    inputs = directions(arguments)
    u, A = inputs[0].u, inputs[0].A
    shape = (u.shape[0], *A.shape)
    return triton_launch.empty_like(u), A.new_empty((2, *shape) if len(inputs) == 2 else shape)


@scan_with_checkpoints.register_fake
def scan_with_checkpoints_shapes(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Empty tensors like the outputs of `scan_with_checkpoints`."""
    inputs = directions(arguments)
    batch, dim, length = inputs[0].u.shape
    A, chunk = inputs[0].A, Tuning(*arguments[-1]).chunk
    checkpoints = A.new_empty((len(inputs), batch, (length + chunk - 1) // chunk, A.shape[1], dim))
    return (*scan_shapes(*arguments), checkpoints)


@scan_backward.register_fake
def scan_backward_shapes(
    grad_out: Tensor, grad_last: Tensor | None, checkpoints: Tensor, *arguments: Any
) -> list[Tensor]:
    """Empty tensors like the gradients that `scan_backward` returns."""
    results = []
    for inputs in directions(arguments):
        for name, tensor in inputs.tensors().items():
            if name in ("u", "delta", "z"):
                results.append(triton_launch.empty_like(inputs.u).to(tensor.dtype))
            elif name in ("A", "B", "C"):
                results.append(tensor.new_empty((*tensor.shape[:-2], tensor.shape[-1], tensor.shape[-2])).mT)
            else:
                results.append(tensor.new_empty(tensor.shape))
    return results


def keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Keep what the gradients need: the inputs and the checkpoints."""
    ctx.set_materialize_grads(False)  # outputs that nothing used would get zeros as large as they are
    ctx.save_for_backward(output[2], *inputs[:TENSORS])
    ctx.settings = inputs[TENSORS:]


def gradients_of(
    ctx: Any, grad_out: Tensor | None, grad_last: Tensor | None, grad_checkpoints: None
) -> tuple[Any, ...]:
    """The gradients of `scan_with_checkpoints`, one for each of its arguments."""
    checkpoints, *tensors = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(tensors[0])
    found = iter(scan_backward(grad_out, grad_last, checkpoints, *tensors, *ctx.settings))
    return (*(None if tensor is None else next(found) for tensor in tensors), *(None for _ in ctx.settings))


scan_with_checkpoints.register_autograd(gradients_of, setup_context=keep_for_backward)
