"""Shape inference and vmap rules of the native ops, for torch's tracing."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from scanlab.contract.forks import has_forked
from scanlab.errors import ProblemError
from scanlab_kernels.build import Extension
from scanlab_kernels.selective_scan.arguments import TENSORS, directions

TIME_BLOCK = TENSORS + 3  # after softplus, reverse and threads


@functools.cache
def load(extension: Extension) -> None:
    """Load the compiled ops of `extension` and register their shapes; once in a process."""
    extension.load()
    if has_forked():
        torch.ops.scanlab.note_fork()
    torch.library.register_fake("scanlab::scan", scan_shapes)
    torch.library.register_fake("scanlab::scan_with_checkpoints", scan_with_checkpoints_shapes)
    torch.library.register_fake("scanlab::scan_backward", scan_backward_shapes)
    for name in ("scan", "scan_with_checkpoints", "scan_backward"):
        torch.library.register_vmap(f"scanlab::{name}", functools.partial(one_by_one, getattr(torch.ops.scanlab, name)))


def one_by_one(op: Any, info: Any, axes: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
    """Return the results of `op` for each entry of the mapped axes, stacked, and the mapped axis of each result."""
    results = [
        op(*(value if axis is None else value.select(axis, entry) for value, axis in zip(arguments, axes, strict=True)))
        for entry in range(info.batch_size)
    ]
    stacked = type(results[0])(map(torch.stack, zip(*results, strict=True)))
    return stacked, type(stacked)(0 for _ in stacked)


def expect_one_device(*tensors: Tensor | None) -> None:
    """Raise ProblemError unless all lie where the first does: one without data would leave outputs unwritten."""
    devices = [tensor.device for tensor in tensors if tensor is not None]
    for device in devices:
        if device != devices[0]:
            raise ProblemError(f"tensors are on {devices[0]} and on {device}: all must be on one device.")


def scan_shapes(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Empty tensors like the outputs of `scan`; raises ProblemError where its tensors lie on several devices."""
    expect_one_device(*arguments[:TENSORS])
    inputs = directions(arguments)
    u, A = inputs[0].u, inputs[0].A
    shape = (u.shape[0], *A.shape)
    return torch.empty_like(u), A.new_empty((2, *shape) if len(inputs) == 2 else shape)


def scan_with_checkpoints_shapes(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Empty tensors like the outputs of `scan_with_checkpoints`."""
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
) -> list[Tensor]:
    """Empty tensors like the gradients that `scan_backward` returns: of the inputs that are there, in their order.

    Raises ProblemError where its tensors lie on several devices.
    """
    expect_one_device(grad_out, grad_last, checkpoints, *arguments[:TENSORS])
    results = []
    for inputs in directions(arguments):
        for name, tensor in inputs.tensors().items():
            if name in ("B", "C") and tensor.dim() > 2:
                state, columns = tensor.shape[-2:]
                length = inputs.u.shape[-1]
                by_time = tensor.new_empty((*tensor.shape[:-2], length, state, columns // length))
                results.append(by_time.transpose(-3, -2).flatten(-2))
            elif name in ("u", "delta", "z"):
                results.append(torch.empty_like(tensor))
            else:
                results.append(tensor.new_empty(tensor.shape))
    return results
