"""The scan's GPU kernels as torch ops: with shapes for tracing and gradients for autograd.

`scanlab::triton_scan` computes, `scanlab::triton_scan_with_checkpoints` also keeps what its gradients need,
and `scanlab::triton_scan_backward` returns them: of the inputs that are there, in their order.

The first call of a kind finds out what has to be copied and what the kernels are launched with; those after it find
room and launch. No call waits for the GPU, and all room comes from torch: what was called once can be captured in a
CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scanlab.contract.problem import ScanInputs
from scanlab_kernels.autograd import NOT_TWICE, refusing
from scanlab_kernels.gpu.launch_cache import Known, Launch, kinds_of
from scanlab_kernels.selective_scan.arguments import TENSORS, directions
from scanlab_kernels.selective_scan.triton import gather_bc as triton_rows
from scanlab_kernels.selective_scan.triton import launch as triton_launch
from scanlab_kernels.selective_scan.triton.launch import Gradients, Outputs, Task, Tuning

FIRST = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C"
ABSENT = ", ".join(f"Tensor? {name}" for name in ScanInputs._fields[5:])
SECOND = ", ".join(f"Tensor? {name}_back" for name in ScanInputs._fields)
ARGUMENTS = f"{FIRST}, {ABSENT}, {SECOND}, bool delta_softplus, bool reverse, int[] tuning"

library = torch.library.Library("scanlab", "FRAGMENT")


class Prepared(NamedTuple):
    """What calls of one kind share.

    task      the scan, but for its tensors
    copies    the names of the inputs to be copied first, for each direction, or None
    gather    what brings B and C to where the kernels read them, given tensors, or None
    launches  what queues each kernel, given its tensors
    """

    task: Task
    copies: tuple[tuple[str, ...], ...] | None
    gather: Callable[..., None] | None
    launches: list[Callable[..., None]]


_known: Known[Prepared] = Known()


def run(
    arguments: tuple[Any, ...],
    asked: object,
    launches_of: Callable[[Task], tuple[list[Launch], Any]],
    room_of: Callable[[Task], tuple[list[dict[str, Any]], Any]],
) -> Any:
    """Queue the kernels of a scan, and return what they write.

    asked  what tells its kind beside the arguments of the scan
    """
    given = directions(arguments)
    delta_softplus, reverse, tuning = arguments[TENSORS:]
    u, _, A, B = given[0][:4]
    settings = delta_softplus, reverse, tuple(tuning)
    kind = asked, settings, u.shape, A.shape, B.shape, u.get_device(), kinds_of(arguments[:TENSORS])
    known = _known.get(kind)
    with torch.cuda.device_of(u):
        if known is None:
            scan = triton_launch.task(given, *settings)
            gather = None if scan.gather is None else scan.gather.again()
            first_time, written = launches_of(scan)
            launches = [launch.again() for launch in first_time]
            copies = triton_launch.to_copy(given)
            template = scan._replace(directions=(), gather=None)
            _known.learn(kind, Prepared(template, copies if any(copies) else None, gather, launches))
            return written
        ready = given if known.copies is None else triton_launch.copied(given, known.copies)
        if known.gather is not None:
            tensors, ready = triton_rows.room(ready)
            known.gather(*tensors.values())
        room, written = room_of(known.task._replace(directions=ready))
        for launch, tensors in zip(known.launches, room, strict=True):
            launch(*tensors.values())
        return written


def computed(arguments: tuple[Any, ...], keep: bool) -> Outputs:
    """What the forward kernels write."""
    written: Outputs = run(
        arguments,
        keep,
        lambda scan: triton_launch.forward(scan, keep),
        lambda scan: triton_launch.forward_room(scan, keep),
    )
    return written


def joined(outputs: Outputs) -> tuple[Tensor, Tensor]:
    """The output and the last state of a scan out of those of its directions."""
    if outputs.each.dim() == 3:
        return outputs.each, outputs.last_state
    return torch.add(*outputs.each.unbind()), outputs.last_state


def scan(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The output and the last state."""
    return joined(computed(arguments, keep=False))


def scan_with_checkpoints(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the last state, and the states before every chunk."""
    outputs = computed(arguments, keep=True)
    assert outputs.checkpoints is not None
    return (*joined(outputs), outputs.checkpoints)


def scan_backward(grad_out: Tensor, grad_last: Tensor | None, checkpoints: Tensor, *arguments: Any) -> list[Tensor]:
    """The gradients of the inputs that are there."""
    outer = checkpoints, grad_out, grad_last
    gradients = run(
        arguments,
        kinds_of(outer),
        lambda scan: triton_launch.backward(scan, *outer),
        lambda scan: triton_launch.backward_room(scan, *outer),
    )
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


def scan_shapes(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Empty tensors like the outputs of `scan`."""
    inputs = directions(arguments)
    u, A = inputs[0].u, inputs[0].A
    shape = (u.shape[0], *A.shape)
    return triton_launch.empty_like(u), A.new_empty((2, *shape) if len(inputs) == 2 else shape)


def scan_with_checkpoints_shapes(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Empty tensors like the outputs of `scan_with_checkpoints`."""
    inputs = directions(arguments)
    batch, dim, length = inputs[0].u.shape
    A, chunk = inputs[0].A, Tuning(*arguments[-1]).chunk
    checkpoints = A.new_empty((len(inputs), batch, (length + chunk - 1) // chunk, A.shape[1], dim))
    return (*scan_shapes(*arguments), checkpoints)


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
    found = iter(torch.ops.scanlab.triton_scan_backward(grad_out, grad_last, checkpoints, *tensors, *ctx.settings))
    return (*(None if tensor is None else next(found) for tensor in tensors), *(None for _ in ctx.settings))


for schema, compute, shapes in (
    (f"triton_scan({ARGUMENTS}) -> (Tensor, Tensor)", scan, scan_shapes),
    (
        f"triton_scan_with_checkpoints({ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
        scan_with_checkpoints,
        scan_with_checkpoints_shapes,
    ),
    (
        f"triton_scan_backward(Tensor grad_out, Tensor? grad_last, Tensor checkpoints, {ARGUMENTS}) -> Tensor[]",
        scan_backward,
        scan_backward_shapes,
    ),
):
    library.define(schema)
    name = schema.partition("(")[0]
    library.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"scanlab::{name}", shapes, lib=library)
torch.library.register_autograd(
    "scanlab::triton_scan_with_checkpoints", gradients_of, setup_context=keep_for_backward, lib=library
)
keep_nothing, refuse = refusing(NOT_TWICE)
torch.library.register_autograd("scanlab::triton_scan_backward", refuse, setup_context=keep_nothing, lib=library)
