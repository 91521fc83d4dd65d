# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Kernel that gathers B and C of all directions into the form the scan reads best: float32, states adjacent."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from scanlab.contract.problem import ScanInputs
from scanlab_kernels.gpu.launch_cache import Launch
from scanlab_kernels.gpu.tile import states_of

TILE = 1024  # numbers of one program of one warp


class Axes(NamedTuple):
    """Strides of a (batch, groups, state, length) tensor in elements."""

    batch: int
    group: int
    state: int
    time: int


@triton.jit
def copy_rows(values, axes, out, row, row_mask, index, state_mask, length, groups, STATES: tl.constexpr):
    """Copy rows of one tensor; rows are numbered along time, groups and batch."""
    entry = row // length // groups
    group = row // length % groups
    values += (entry * axes.batch + group * axes.group + row % length * axes.time)[:, None]
    mask = row_mask[:, None] & state_mask[None, :]
    found = tl.load(values + index.to(tl.int64)[None, :] * axes.state, mask=mask)
    tl.store(out + row[:, None] * STATES + index[None, :], found.to(tl.float32), mask=mask)


@triton.jit(do_not_specialize=["rows", "length"])
def gather(
    B,
    C,
    B_second,
    C_second,
    out,
    axes,
    rows,
    length,
    groups,
    blocks,
    STATES: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write B and C of the first direction, and of the second one where there is one.

    out: (2 or 4, batch, groups, length, state). axes: `Axes` of each tensor.
    """
    program = tl.program_id(0)
    row = (program % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    which = program // blocks
    row_mask = row < rows
    index, state_mask = states_of(STATES, PADDED)
    out += which.to(tl.int64) * rows * STATES
    if which == 0:
        copy_rows(B, axes[0], out, row, row_mask, index, state_mask, length, groups, STATES)
    elif which == 1:
        copy_rows(C, axes[1], out, row, row_mask, index, state_mask, length, groups, STATES)
    if B_second is not None:
        if which == 2:
            copy_rows(B_second, axes[2], out, row, row_mask, index, state_mask, length, groups, STATES)
        elif which == 3:
            copy_rows(C_second, axes[3], out, row, row_mask, index, state_mask, length, groups, STATES)


def tensors(given: tuple[ScanInputs, ...]) -> tuple[tuple[Tensor | None, ...], tuple[ScanInputs, ...]]:
    """Return the tensors of the kernel, and `given` with its outputs as B and C: (batch, groups, length, state)."""
    B = given[0].B
    batch, (state, length) = B.shape[0], B.shape[-2:]
    groups = B.shape[1] if B.dim() == 4 else 1
    out = torch.empty((2 * len(given), batch, groups, length, state), dtype=torch.float32, device=B.device)
    parts = out.unbind()
    gathered = [each._replace(B=parts[2 * i], C=parts[2 * i + 1]) for i, each in enumerate(given)]
    second = (given[1].B, given[1].C) if len(given) == 2 else (None, None)
    return (B, given[0].C, *second, out), tuple(gathered)


def launch(given: tuple[ScanInputs, ...]) -> Launch:
    """Return the launch of the kernel."""
    B = given[0].B
    batch, (state, length) = B.shape[0], B.shape[-2:]
    groups = B.shape[1] if B.dim() == 4 else 1
    padded = triton.next_power_of_2(state)
    block = max(1, TILE // padded)
    rows = batch * groups * length
    blocks = -(-rows // block)
    numbers = {
        "axes": tuple(_axes(tensor) for each in given for tensor in (each.B, each.C)),
        "rows": rows,
        "length": length,
        "groups": groups,
        "blocks": blocks,
        "STATES": state,
        "PADDED": padded,
        "BLOCK": block,
    }
    return Launch(gather, 2 * len(given) * blocks, numbers)


def _axes(tensor: Tensor) -> Axes:
    strides = tensor.stride()
    return Axes(*strides) if tensor.dim() == 4 else Axes(strides[0], 0, strides[1], strides[2])
