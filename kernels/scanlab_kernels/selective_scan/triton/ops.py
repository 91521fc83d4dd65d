"""Torch ops of the scan on a GPU, with shapes for tracing and gradients for autograd.

`scanlab::triton_scan` computes; `scanlab::triton_scan_with_checkpoints` also keeps checkpoints for the gradients; and
`scanlab::triton_scan_backward` returns the gradients of the inputs that are there, in their order.

The first call of a kind finds the tensors to copy and prepares the launches; later calls allocate
and launch. No call waits for the GPU and all memory comes from torch, so that a call can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scanlab.contract.problem import ScanInputs
from scanlab_kernels.autograd import NOT_TWICE
from scanlab_kernels.gpu.launch_cache import Launch, LaunchCache, kind_of
from scanlab_kernels.gpu.registration import define
from scanlab_kernels.selective_scan.arguments import TENSORS, directions, keep_inputs
from scanlab_kernels.selective_scan.triton import gather_bc, launch
from scanlab_kernels.selective_scan.triton.launch import Gradients, Outputs, Scan, Tuning

FIRST = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C"
ABSENT = ", ".join(f"Tensor? {name}" for name in ScanInputs._fields[5:])
SECOND = ", ".join(f"Tensor? {name}_second" for name in ScanInputs._fields)
ARGUMENTS = f"{FIRST}, {ABSENT}, {SECOND}, bool delta_softplus, bool reverse, int[] tuning"


class Plan(NamedTuple):
    """Common parts of calls of one kind.

    Attributes:
        copies: The names of the inputs to copy first, by direction.
        row: `Scan.row`.
        gather: Gathers B and C; None if they are read in place.
        launches: The launches of the scan's kernels.
    """

    copies: tuple[tuple[str, ...], ...]
    row: int
    gather: Launch | None
    launches: list[Launch]


_plans: LaunchCache[Plan] = LaunchCache()


def _plan(given: tuple[ScanInputs, ...]) -> Plan:
    """Return the plan for inputs like these, still without the launches of the scan's kernels."""
    row = launch.row_in_place(given)
    gather = gather_bc.launch(given) if row is None else None
    return Plan(launch.to_copy(given), given[0].A.shape[1] if row is None else row, gather, [])


def _run(
    arguments: tuple[Any, ...],
    settings: object,
    tensors_of: Callable[[Scan], tuple[list[dict[str, Any]], Any]],
    launches_of: Callable[[Scan], list[Launch]],
) -> Any:
    """Queue the kernels of a scan, and return their outputs.

    Args:
        arguments: The arguments that all ops of the scan take.
        settings: Further dependencies of the launches; hashable.
        tensors_of: Returns the tensors of each kernel, and the outputs among them.
        launches_of: Returns the launch of each kernel.
    """
    given = directions(arguments)
    delta_softplus, reverse, tuning = arguments[TENSORS:]
    u = given[0].u
    kind = settings, delta_softplus, reverse, tuple(tuning), u.get_device(), kind_of(arguments[:TENSORS])
    known = _plans.get(kind)
    plan = _plan(given) if known is None else known
    with torch.cuda.device_of(u):
        inputs = launch.copied(given, plan.copies)
        if plan.gather is not None:
            tensors, inputs = gather_bc.tensors(inputs)
            plan.gather(*tensors)
        scan = Scan(inputs, delta_softplus, reverse, Tuning(*tuning), plan.row)
        each, outputs = tensors_of(scan)
        launches = launches_of(scan) if known is None else plan.launches
        for kernel, tensors_of_kernel in zip(launches, each, strict=True):
            kernel(*tensors_of_kernel.values())
    if known is None:
        _plans.remember(kind, plan._replace(launches=launches))
    return outputs


def _forward(arguments: tuple[Any, ...], keep: bool) -> Outputs:
    outputs: Outputs = _run(
        arguments,
        keep,
        lambda scan: launch.forward_tensors(scan, keep),
        lambda scan: launch.forward_launches(scan, keep),
    )
    if outputs.out.dim() == 3:
        return outputs
    return outputs._replace(out=torch.add(*outputs.out.unbind()))


def scan(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Return the output and the last state."""
    return _forward(arguments, keep=False)[:2]


def scan_with_checkpoints(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, the last state, and the states before every chunk."""
    outputs = _forward(arguments, keep=True)
    assert outputs.checkpoints is not None
    return outputs.out, outputs.last_state, outputs.checkpoints


def scan_backward(grad_out: Tensor, grad_last: Tensor | None, checkpoints: Tensor, *arguments: Any) -> list[Tensor]:
    """Return the gradients of the inputs that are there."""
    outer = checkpoints, grad_out, grad_last
    gradients = _run(
        arguments,
        kind_of(outer),
        lambda scan: launch.backward_tensors(scan, *outer),
        launch.backward_launches,
    )
    results = []
    for inputs, found in zip(directions(arguments), gradients, strict=True):
        results += list(_summed(found, inputs).tensors().values())
    return results


def _summed(gradients: Gradients, inputs: ScanInputs) -> ScanInputs:
    """Return the gradients with their partial sums added, in the shapes and dtypes of the inputs."""

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


def scan_shapes(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Return empty tensors like the outputs of `scan`."""
    inputs = directions(arguments)
    u, A = inputs[0].u, inputs[0].A
    shape = (u.shape[0], *A.shape)
    return launch.empty_like(u), A.new_empty((2, *shape) if len(inputs) == 2 else shape)


def scan_with_checkpoints_shapes(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return empty tensors like the outputs of `scan_with_checkpoints`."""
    inputs = directions(arguments)
    batch, dim, length = inputs[0].u.shape
    A, chunk = inputs[0].A, Tuning(*arguments[-1]).chunk
    checkpoints = A.new_empty((len(inputs), batch, (length + chunk - 1) // chunk, A.shape[1], dim))
    return (*scan_shapes(*arguments), checkpoints)


def scan_backward_shapes(
    grad_out: Tensor, grad_last: Tensor | None, checkpoints: Tensor, *arguments: Any
) -> list[Tensor]:
    """Return empty tensors like the gradients that `scan_backward` returns."""
    results = []
    for inputs in directions(arguments):
        for name, tensor in inputs.tensors().items():
            if name in ("u", "delta", "z"):
                results.append(launch.empty_like(inputs.u).to(tensor.dtype))
            elif name in ("A", "B", "C"):
                results.append(tensor.new_empty((*tensor.shape[:-2], tensor.shape[-1], tensor.shape[-2])).mT)
            else:
                results.append(tensor.new_empty(tensor.shape))
    return results


def gradients(ctx: Any, grad_out: Tensor | None, grad_last: Tensor | None, grad_checkpoints: None) -> tuple[Any, ...]:
    """Return the gradients of `scan_with_checkpoints`, one for each of its arguments."""
    checkpoints, *tensors = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(tensors[0])
    found = iter(torch.ops.scanlab.triton_scan_backward(grad_out, grad_last, checkpoints, *tensors, *ctx.settings))
    return (*(None if tensor is None else next(found) for tensor in tensors), *(None for _ in ctx.settings))


define(f"scanlab::triton_scan({ARGUMENTS}) -> (Tensor, Tensor)", scan, scan_shapes)
define(
    f"scanlab::triton_scan_with_checkpoints({ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    scan_with_checkpoints,
    scan_with_checkpoints_shapes,
    keep=keep_inputs,
    gradients=gradients,
)
define(
    f"scanlab::triton_scan_backward(Tensor grad_out, Tensor? grad_last, Tensor checkpoints, {ARGUMENTS}) -> Tensor[]",
    scan_backward,
    scan_backward_shapes,
    refuses=NOT_TWICE,
)
