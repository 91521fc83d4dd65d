# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""B and C of all directions brought to where the scan reads them best, in one launch: float32, states side by side."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from scanlab.contract.problem import ScanInputs
from scanlab_kernels.gpu.launch_cache import Launch
from scanlab_kernels.gpu.tile import states_of

TILE = 1024  # numbers of one program, which is one warp


class Axes(NamedTuple):
    """The strides of a (batch, groups, state, length) tensor, in elements."""

    batch: int
    group: int
    state: int
    time: int


@triton.jit
def move(values, axes, out, row, row_mask, index, state_mask, length, groups, STATES: tl.constexpr):
    """The rows, numbered along time, groups and batch, of one of the tensors."""
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
    B_back,
    C_back,
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
    """Write B and C, and those of the other direction where there is one.

    out  (2 or 4, batch, groups, length, state)
    axes of each
    """
    program = tl.program_id(0)
    row = (program % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    which = program // blocks
    row_mask = row < rows
    index, state_mask = states_of(STATES, PADDED)
    out += which.to(tl.int64) * rows * STATES
    if which == 0:
        move(B, axes[0], out, row, row_mask, index, state_mask, length, groups, STATES)
    elif which == 1:
        move(C, axes[1], out, row, row_mask, index, state_mask, length, groups, STATES)
    if B_back is not None:
        if which == 2:
            move(B_back, axes[2], out, row, row_mask, index, state_mask, length, groups, STATES)
        elif which == 3:
            move(C_back, axes[3], out, row, row_mask, index, state_mask, length, groups, STATES)


def room(given: tuple[ScanInputs, ...]) -> tuple[dict[str, Tensor | None], tuple[ScanInputs, ...]]:
    """The tensors of the launch, and `given` with B and C as they are after it: (batch, groups, length, state)."""
    B = given[0].B
    batch, (state, length) = B.shape[0], B.shape[-2:]
    groups = B.shape[1] if B.dim() == 4 else 1
    out = torch.empty((2 * len(given), batch, groups, length, state), dtype=torch.float32, device=B.device)
    there = out.unbind()
    moved = [each._replace(B=there[2 * i], C=there[2 * i + 1]) for i, each in enumerate(given)]
    back = given[1] if len(given) == 2 else None
    tensors = {
        "B": B,
        "C": given[0].C,
        "B_back": None if back is None else back.B,
        "C_back": None if back is None else back.C,
        "out": out,
    }
    return tensors, tuple(moved)


def launch(given: tuple[ScanInputs, ...]) -> tuple[Launch, tuple[ScanInputs, ...]]:
    """The launch, and `given` with B and C as they are after it."""
    tensors, moved = room(given)
    batch, groups, length, state = moved[0].B.shape
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
    return Launch(gather, 2 * len(given) * blocks, tensors, numbers, {"num_warps": 1}), moved


def _axes(tensor: Tensor) -> Axes:
    strides = tensor.stride()
    return Axes(*strides) if tensor.dim() == 4 else Axes(strides[0], 0, strides[1], strides[2])
