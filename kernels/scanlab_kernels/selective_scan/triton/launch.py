"""Tensors and launches of the kernels of one scan.

Each pass has a function that allocates the tensors of its kernels (`forward_tensors`, `backward_tensors`) and one that
returns their launches (`forward_launches`, `backward_launches`), which depend on shapes, strides and settings alone.
Nothing here reads data, so that tensors on the device "meta" serve as well.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.language import constexpr

from scanlab.contract.problem import ScanInputs
from scanlab_kernels.gpu.launch_cache import ALIGNED_BYTES, Launch
from scanlab_kernels.gpu.tile import Axes
from scanlab_kernels.selective_scan.triton import backward, backward_state_pass, forward, segments
from scanlab_kernels.selective_scan.triton.tile import Strides, Tile

MAX_OFFSET = 2**31 - 1
LOADED_AT_ONCE = 4  # float32 values of B or C, where their addresses are known to be divisible by as many


class Tuning(NamedTuple):
    """Tunables as the torch ops take them; `backend.py` documents each."""

    lanes: int
    channels: int
    unroll: int
    warps: int
    stages: int
    segments: int
    registers: int
    polynomial: int
    batch_first: int
    chunk: int
    history: int
    backward_lanes: int
    backward_channels: int
    backward_segments: int


class Scan(NamedTuple):
    """A scan in the form that the kernels read.

    Attributes:
        directions: Inputs of one direction or two. u and delta are dense with the same strides; B and C are float32,
            their states adjacent.
        delta_softplus: Whether softplus is applied to delta + delta_bias.
        reverse: Whether a single direction runs against time.
        tuning: The tunables.
        row: Distance from B and C of one step to those of the next, in elements; length * row is the distance from one
            batch entry or group to the next.
    """

    directions: tuple[ScanInputs, ...]
    delta_softplus: bool
    reverse: bool
    tuning: Tuning
    row: int

    @property
    def groups(self) -> int:
        """Groups of B and C."""
        B = self.directions[0].B
        return B.shape[1] if B.dim() == 4 else 1


class Outputs(NamedTuple):
    """Outputs of the forward kernels.

    Attributes:
        out: (batch, dim, length), or (2, batch, dim, length) for two directions.
        last_state: (batch, dim, state), or (2, batch, dim, state).
        checkpoints: (directions, batch, chunks, state, dim), the states before each chunk; or None.
    """

    out: Tensor
    last_state: Tensor
    checkpoints: Tensor | None


class Gradients(NamedTuple):
    """Outputs of the backward kernels for one direction; partial sums are to be added over their first axis.

    Attributes:
        u, delta, z: (batch, dim, length).
        A: (batch * segments, state, dim), partial.
        B, C: (blocks, batch, groups, length, state), partial.
        D, delta_bias: (batch * segments, dim), partial.
        initial_state: (batch, dim, state).
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    initial_state: Tensor | None


def empty_like(u: Tensor, *leading: int) -> Tensor:
    """Return an empty tensor (*leading, *u.shape) that is dense in the layout of u."""
    batch, dim, length = u.shape
    if _is_dim_last(u):
        return u.new_empty((*leading, batch, length, dim)).mT
    return u.new_empty((*leading, batch, dim, length))


def dense_strides(u: Tensor) -> tuple[int, int, int]:
    """Return the strides of a dense tensor in the layout of u."""
    _, dim, length = u.shape
    return (dim * length, 1, dim) if _is_dim_last(u) else (dim * length, length, 1)


def _is_dim_last(u: Tensor) -> bool:
    return u.shape[1] > 1 and u.stride(1) == 1


def has_strides(tensor: Tensor, strides: tuple[int, ...]) -> bool:
    """Return whether `tensor` has these strides along every axis longer than 1."""
    return all(
        own == wanted or size == 1 for own, wanted, size in zip(tensor.stride(), strides, tensor.shape, strict=True)
    )


def with_strides(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Return `tensor` with these strides, copied only if it has others."""
    if has_strides(tensor, strides):
        return tensor
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def row_in_place(given: tuple[ScanInputs, ...]) -> int | None:
    """Return `Scan.row` where the kernels can read B and C as they lie, or None if these have to be gathered."""
    found = set()
    for values in (tensor for each in given for tensor in (each.B, each.C)):
        entry, (state, row), (states, length) = values.stride(0), values.stride()[-2:], values.shape[-2:]
        adjacent = (state == 1 or states == 1) and (entry == length * row or values.shape[0] == 1)
        aligned = row % LOADED_AT_ONCE == 0 and values.data_ptr() % ALIGNED_BYTES == 0
        one_group = values.dim() == 3 or values.shape[1] == 1
        if not (adjacent and aligned and one_group and values.dtype == torch.float32):
            return None
        found.add(row if states <= row and row * length <= MAX_OFFSET else None)
    return found.pop() if len(found) == 1 else None


def to_copy(given: tuple[ScanInputs, ...]) -> tuple[tuple[str, ...], ...]:
    """Return the names of the inputs other than B and C that the kernels cannot read as they lie, by direction."""
    strides = dense_strides(given[0].u)
    differ = len({(each.A.stride(), None if each.z is None else each.z.stride()) for each in given}) > 1

    def unreadable(name: str, tensor: Tensor) -> bool:
        if name in ("u", "delta"):
            return not has_strides(tensor, strides)
        if name == "z":
            last_offset = sum(
                (size - 1) * step for size, step in zip(tensor.shape[1:], tensor.stride()[1:], strict=True)
            )
            return (differ or last_offset > MAX_OFFSET) and not has_strides(tensor, strides)
        if name in ("B", "C"):
            return False
        return (differ or name != "A") and not tensor.is_contiguous()

    return tuple(tuple(name for name, tensor in each.tensors().items() if unreadable(name, tensor)) for each in given)


def copied(given: tuple[ScanInputs, ...], names: tuple[tuple[str, ...], ...]) -> tuple[ScanInputs, ...]:
    """Return `given` with the named inputs of each direction copied to where the kernels can read them."""
    if not any(names):
        return given
    strides = dense_strides(given[0].u)

    def copy(name: str, tensor: Tensor) -> Tensor:
        return with_strides(tensor, strides) if name in ("u", "delta", "z") else tensor.contiguous()

    return tuple(
        each._replace(**{name: copy(name, getattr(each, name)) for name in bad})
        for each, bad in zip(given, names, strict=True)
    )


def forward_tensors(scan: Scan, keep: bool) -> tuple[list[dict[str, Any]], Outputs]:
    """Return the tensors of each forward kernel, and those of them that are outputs."""
    u, A = scan.directions[0].u, scan.directions[0].A
    batch, dim, length = u.shape
    count, state, chunk = len(scan.directions), A.shape[1], scan.tuning.chunk
    leading = (count,) if count > 1 else ()
    outputs = Outputs(
        empty_like(u, *leading),
        A.new_empty((*leading, batch, dim, state)),
        A.new_empty((count, batch, -(-length // chunk), state, dim)) if keep else None,
    )
    _, parts = segments.cut(length, scan.tuning.segments, chunk if keep else scan.tuning.unroll)
    tensors = {
        **_inputs(scan),
        "out": outputs.out,
        "last": outputs.last_state,
        "checkpoints": outputs.checkpoints,
        **_segment_maps(scan, parts),
    }
    return [tensors] * _passes(parts), outputs


def forward_launches(scan: Scan, keep: bool) -> list[Launch]:
    """Return the launches of the forward scan in their order; with `keep` they store the checkpoints."""
    tuning = scan.tuning
    chunk = tuning.chunk if keep else tuning.unroll
    tile, blocks = _forward_tile(scan, chunk, tuning.polynomial)
    numbers, programs = _numbers(scan, tuning.segments, chunk)
    return [
        Launch(
            forward.scan,
            blocks * programs,
            {**numbers, "tile": tile, "ENDS_ALONE": ends_alone},
            warps=tuning.warps,
            registers=tuning.registers,
        )
        for ends_alone in (True, False)[-_passes(numbers["segments"]) :]
    ]


def backward_tensors(
    scan: Scan, checkpoints: Tensor, grad_out: Tensor, grad_last: Tensor | None
) -> tuple[list[dict[str, Any]], tuple[Gradients, ...]]:
    """Return the tensors of each backward kernel, and the gradients of each direction among them."""
    tuning, first = scan.tuning, scan.directions[0]
    batch, dim, length = first.u.shape
    count, state = len(scan.directions), first.A.shape[1]
    _, parts = segments.cut(length, tuning.backward_segments, tuning.chunk)
    gradients = tuple(_empty_gradients(scan, each, parts) for each in scan.directions)
    within = tuning.chunk // tuning.history
    inputs, maps = _inputs(scan), _segment_maps(scan, parts)
    outer = {"grad_out": with_strides(grad_out, dense_strides(first.u))}
    whole: dict[str, Any] = {
        **inputs,
        "first_gradients": gradients[0],
        "second_gradients": gradients[1] if count == 2 else None,
        **outer,
        "grad_last": None if grad_last is None else grad_last.contiguous(),
        "checkpoints": checkpoints,
        "scratch": first.A.new_empty((count, batch, parts, within, state, dim) if within > 1 else 0),
        **maps,
    }
    first_pass: dict[str, Any] = {**inputs, **outer, **maps}
    return [first_pass, whole][-_passes(parts) :], gradients


def backward_launches(scan: Scan) -> list[Launch]:
    """Return the launches of the backward scan in their order."""
    tuning = scan.tuning
    numbers, programs = _numbers(scan, tuning.backward_segments, tuning.chunk)
    block = tuning.backward_lanes * tuning.backward_channels
    tile, blocks = _tile(scan, tuning.backward_lanes, tuning.backward_channels, tuning.chunk, tuning.history)
    launches = [Launch(backward.scan, blocks * programs, {**numbers, "tile": tile, "FULL_LANES": min(block, 32)})]
    if numbers["segments"] > 1:
        tile, blocks = _forward_tile(scan, tuning.chunk)
        first_pass = Launch(
            backward_state_pass.scan,
            blocks * programs,
            {**numbers, "tile": tile},
            warps=tuning.warps,
            registers=tuning.registers,
        )
        launches.insert(0, first_pass)
    return launches


def _empty_gradients(scan: Scan, inputs: ScanInputs, parts: int) -> Gradients:
    batch, dim, length = inputs.u.shape
    new, state = inputs.A.new_empty, inputs.A.shape[1]
    block = scan.tuning.backward_lanes * scan.tuning.backward_channels
    blocks = -(-dim // (scan.groups * block))
    return Gradients(
        u=empty_like(inputs.u),
        delta=empty_like(inputs.u),
        A=new((batch * parts, state, dim)),
        B=new((blocks, batch, scan.groups, length, state)),
        C=new((blocks, batch, scan.groups, length, state)),
        D=None if inputs.D is None else new((batch * parts, dim)),
        z=None if inputs.z is None else empty_like(inputs.u),
        delta_bias=None if inputs.delta_bias is None else new((batch * parts, dim)),
        initial_state=None if inputs.initial_state is None else new((batch, dim, state)),
    )


def _inputs(scan: Scan) -> dict[str, ScanInputs | None]:
    """Return the first two arguments of every kernel."""
    return {"first": scan.directions[0], "second": scan.directions[1] if len(scan.directions) == 2 else None}


def _segment_maps(scan: Scan, parts: int) -> dict[str, Tensor | None]:
    """Return room for the map of each segment, the last tensors of every kernel; see `segments.py`."""
    if parts == 1:
        return {"ends": None, "totals": None}
    first = scan.directions[0]
    leading, new = (len(scan.directions), first.u.shape[0], parts), first.A.new_empty
    dim, state = first.A.shape
    return {"ends": new((*leading, state, dim)), "totals": new((*leading, dim))}


def _passes(parts: int) -> int:
    """Return the number of kernels of a scan in `parts` segments."""
    return 1 if parts == 1 else 2


def _tile(
    scan: Scan, lanes: int, channels: int, chunk: int, unroll: int, stages: int = 1, by_products: int = 0
) -> tuple[Tile, int]:
    """Return the constants of a kernel, and its number of blocks of channels."""
    dim, state = scan.directions[0].A.shape
    blocks = scan.groups * -(-dim // (scan.groups * lanes * channels))
    constants: dict[str, int] = {
        "lanes": lanes,
        "channels": channels,
        "even": blocks * lanes * channels == dim,
        "states": state,
        "padded": 1 << (state - 1).bit_length(),
        "row": scan.row,
        "softplus": scan.delta_softplus,
        "chunk": chunk,
        "unroll": unroll,
        "stages": stages,
        "by_products": by_products,
    }
    return Tile(**{name: constexpr(value) for name, value in constants.items()}), blocks


def _forward_tile(scan: Scan, chunk: int, by_products: int = 0) -> tuple[Tile, int]:
    tuning = scan.tuning
    lanes = tuning.lanes * tuning.warps
    return _tile(scan, lanes, tuning.channels, chunk, tuning.unroll, tuning.stages, by_products)


def _numbers(scan: Scan, max_segments: int, multiple: int) -> tuple[dict[str, Any], int]:
    """Return the numbers that every kernel takes, and its programs for each block of channels.

    Args:
        scan: The scan.
        max_segments: Largest number of segments.
        multiple: Divisor of the steps of a segment.
    """
    first = scan.directions[0]
    batch, dim, length = first.u.shape
    steps, parts = segments.cut(length, max_segments, multiple)
    axes = [dense_strides(first.u), (0, 0, 0) if first.z is None else first.z.stride()]
    numbers = {
        "strides": Strides(*(Axes(batch, dim, constexpr(time)) for batch, dim, time in axes)),
        "batch": batch,
        "length": length,
        "steps": steps,
        "one": 1,
        "A_dim": first.A.stride(0),
        "A_state": first.A.stride(1),
        "segments": parts,
        "width": dim // scan.groups,
        "groups": scan.groups,
        "BOTH": len(scan.directions) == 2,
        "REVERSE": scan.reverse,
        "BATCH_FIRST": bool(scan.tuning.batch_first),
    }
    return numbers, batch * len(scan.directions) * parts
