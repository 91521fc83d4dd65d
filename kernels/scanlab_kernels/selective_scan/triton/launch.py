"""The kernels of one scan with all of their arguments: what the ops run and what can be compiled without a GPU.

Nothing here touches data beyond casts and copies, so that tensors of the device "meta" serve as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.language import constexpr

from scanlab.contract.problem import ScanInputs
from scanlab_kernels.gpu.launch_cache import ALIGNED_BYTES, Launch
from scanlab_kernels.gpu.tile import Axes, Strides
from scanlab_kernels.selective_scan.triton import backward as triton_backward
from scanlab_kernels.selective_scan.triton import backward_state_pass as triton_adjoint
from scanlab_kernels.selective_scan.triton import forward as triton_forward
from scanlab_kernels.selective_scan.triton import gather_bc as triton_rows
from scanlab_kernels.selective_scan.triton import segments as triton_segments

MOST_OFFSET = 2**31 - 1
LOADED_AT_ONCE = 4  # float32 of B or C, where their addresses are known to be divisible by as many


class Tuning(NamedTuple):
    """The tunables as the ops take them; their meaning stands with the choices in `triton.py`."""

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
    back_lanes: int
    back_channels: int
    back_segments: int


class Task(NamedTuple):
    """A scan ready for the kernels: its inputs as they read them, and what all of its launches share.

    directions  one or two sets of inputs: u and delta dense and alike in strides; B and C in float32, their states side
                by side, `row` numbers from step to step and length x row from one batch entry or group to the next
    gather      what brings B and C there, or None
    """

    directions: tuple[ScanInputs, ...]
    delta_softplus: bool
    reverse: bool
    tuning: Tuning
    row: int
    gather: Launch | None

    @property
    def groups(self) -> int:
        """Groups of B and C."""
        B = self.directions[0].B
        return B.shape[1] if B.dim() == 4 else 1


class Outputs(NamedTuple):
    """What the forward launches write.

    each         (batch, dim, length), or (2, ...) of two directions; last_state likewise
    checkpoints  (directions, batch, chunks, state, dim)
    """

    each: Tensor
    last_state: Tensor
    checkpoints: Tensor | None


class Gradients(NamedTuple):
    """What the backward launches write for one direction; the first axis of what is in parts is to be summed.

    u, delta, z    (batch, dim, length)
    A              (batch x segments, state, dim)
    B, C           (blocks, batch, groups, length, state)
    D, delta_bias  (batch x segments, dim)
    initial_state  (batch, dim, state)
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


def channels_last(u: Tensor) -> bool:
    """Whether the stride of dim is 1: the layout that the kernels read best, and in which they then answer."""
    return u.shape[1] > 1 and u.stride(1) == 1


def empty_like(u: Tensor, *leading: int) -> Tensor:
    """An empty tensor (*leading, *u.shape) that is dense in the layout of u."""
    batch, dim, length = u.shape
    if channels_last(u):
        return u.new_empty((*leading, batch, length, dim)).mT
    return u.new_empty((*leading, batch, dim, length))


def dense_strides(u: Tensor) -> tuple[int, int, int]:
    """The strides of a dense tensor like u, in its layout."""
    _, dim, length = u.shape
    return (dim * length, 1, dim) if channels_last(u) else (dim * length, length, 1)


def lies(tensor: Tensor, strides: tuple[int, ...]) -> bool:
    """Whether `tensor` has these strides in every axis along which there is anything."""
    return all(
        own == wanted or size == 1 for own, wanted, size in zip(tensor.stride(), strides, tensor.shape, strict=True)
    )


def dense(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """`tensor` with these strides; copied where it has others."""
    if lies(tensor, strides):
        return tensor
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def reach(tensor: Tensor) -> int:
    """The largest offset within a batch entry."""
    _, dim, length = tensor.shape
    return (dim - 1) * tensor.stride(1) + (length - 1) * tensor.stride(2)


def row_in_place(given: tuple[ScanInputs, ...]) -> int | None:
    """How far B and C of one step are from those of the next, where the kernels read them as they are.

    None where they have to be copied: such as lie otherwise, are not in float32, or not where four are loaded at once.
    """
    found = set()
    for values in (tensor for each in given for tensor in (each.B, each.C)):
        entry, (state, row), (states, length) = values.stride(0), values.stride()[-2:], values.shape[-2:]
        side_by_side = (state == 1 or states == 1) and (entry == length * row or values.shape[0] == 1)
        aligned = row % LOADED_AT_ONCE == 0 and values.data_ptr() % ALIGNED_BYTES == 0
        one_group = values.dim() == 3 or values.shape[1] == 1
        if not (side_by_side and aligned and one_group and values.dtype == torch.float32):
            return None
        found.add(row if states <= row and row * length <= MOST_OFFSET else None)
    return found.pop() if len(found) == 1 else None


def to_copy(given: tuple[ScanInputs, ...]) -> tuple[tuple[str, ...], ...]:
    """The names of the inputs beside B and C that the kernels cannot read as they lie, for each set."""
    strides = dense_strides(given[0].u)
    others = len({(each.A.stride(), None if each.z is None else each.z.stride()) for each in given}) > 1

    def lies_badly(name: str, tensor: Tensor) -> bool:
        if name in ("u", "delta"):
            return not lies(tensor, strides)
        if name == "z":
            return (others or reach(tensor) > MOST_OFFSET) and not lies(tensor, strides)
        if name in ("B", "C"):
            return False
        return (others or name != "A") and not tensor.is_contiguous()

    return tuple(tuple(name for name, tensor in each.tensors().items() if lies_badly(name, tensor)) for each in given)


def copied(given: tuple[ScanInputs, ...], names: tuple[tuple[str, ...], ...]) -> tuple[ScanInputs, ...]:
    """`given` with these inputs of each set copied to where the kernels read them."""
    strides = dense_strides(given[0].u)

    def copy(name: str, tensor: Tensor) -> Tensor:
        return dense(tensor, strides) if name in ("u", "delta", "z") else tensor.contiguous()

    return tuple(
        each._replace(**{name: copy(name, getattr(each, name)) for name in bad}) if bad else each
        for each, bad in zip(given, names, strict=True)
    )


def task(given: tuple[ScanInputs, ...], delta_softplus: bool, reverse: bool, tuning: Sequence[int]) -> Task:
    """The scan of `given`, one set of inputs or two, ready for the kernels."""
    directions = copied(given, to_copy(given))
    row, gather = row_in_place(given), None
    if row is None:
        gather, directions = triton_rows.launch(directions)
        row = given[0].A.shape[1]
    return Task(directions, delta_softplus, reverse, Tuning(*tuning), row, gather)


def forward_room(scan: Task, keep: bool) -> tuple[list[dict[str, Any]], Outputs]:
    """The tensors of each forward launch, in the order of its kernel, and those of them that it is for."""
    first = scan.directions[0]
    u, A = first.u, first.A
    batch, dim, length = u.shape
    count, state = len(scan.directions), A.shape[1]
    several = (count,) if count > 1 else ()
    outputs = Outputs(
        empty_like(u, *several),
        A.new_empty((*several, batch, dim, state)),
        A.new_empty((count, batch, -(-length // scan.tuning.chunk), state, dim)) if keep else None,
    )
    chunk = scan.tuning.chunk if keep else scan.tuning.unroll
    _, parts = triton_segments.cut(length, scan.tuning.segments, chunk)
    tensors = {
        **inputs_of(scan),
        "out": outputs.each,
        "last": outputs.last_state,
        "checkpoints": outputs.checkpoints,
        **maps_of(scan, parts),
    }
    return [tensors] * passes(parts), outputs


def forward(scan: Task, keep: bool) -> tuple[list[Launch], Outputs]:
    """The launches of the forward scan, in their order; with `keep` the state before every chunk is kept."""
    tuning = scan.tuning
    chunk = tuning.chunk if keep else tuning.unroll
    room, outputs = forward_room(scan, keep)
    tile, blocks = tile_of(scan)
    numbers = {**shared(scan, tuning.segments, chunk), **tile, "CHUNK": chunk, "BY_PRODUCTS": tuning.polynomial}
    programs = blocks * numbers["batch"] * len(scan.directions) * numbers["segments"]
    options = compiled_with(tuning.warps, tuning.registers)
    launches = [
        Launch(triton_forward.scan, programs, tensors, {**numbers, "ENDS_ALONE": before < len(room) - 1}, options)
        for before, tensors in enumerate(room)
    ]
    return launches, outputs


def backward_room(
    scan: Task, checkpoints: Tensor, grad_out: Tensor, grad_last: Tensor | None
) -> tuple[list[dict[str, Any]], tuple[Gradients, ...]]:
    """The tensors of each backward launch, in the order of its kernel, and the gradients that they are for."""
    tuning, first = scan.tuning, scan.directions[0]
    batch, dim, length = first.u.shape
    count, state = len(scan.directions), first.A.shape[1]
    blocks = blocks_of(scan, tuning.back_lanes * tuning.back_channels)
    _, parts = triton_segments.cut(length, tuning.back_segments, tuning.chunk)
    gradients = tuple(_empty_gradients(scan, each, blocks, parts) for each in scan.directions)
    within = tuning.chunk // tuning.history
    inputs, maps = inputs_of(scan), maps_of(scan, parts)
    outer = {"grad_out": dense(grad_out, dense_strides(first.u))}
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
    return [first_pass, whole][-passes(parts) :], gradients


def backward(
    scan: Task, checkpoints: Tensor, grad_out: Tensor, grad_last: Tensor | None
) -> tuple[list[Launch], tuple[Gradients, ...]]:
    """The launches of the backward scan, in their order, from the states that the forward scan kept."""
    tuning = scan.tuning
    room, gradients = backward_room(scan, checkpoints, grad_out, grad_last)
    block = tuning.back_lanes * tuning.back_channels
    blocks = blocks_of(scan, block)
    numbers = shared(scan, tuning.back_segments, tuning.chunk)
    of_whole = {
        **numbers,
        "LANES": tuning.back_lanes,
        "CHANNELS": tuning.back_channels,
        "FULL_LANES": min(block, 32),
        "CHUNK": tuning.chunk,
        "HISTORY": tuning.history,
        "EVEN": blocks * block == scan.directions[0].u.shape[1],
        "BATCH_FIRST": bool(tuning.batch_first),
    }
    programs = numbers["batch"] * len(scan.directions) * numbers["segments"]
    launches = [Launch(triton_backward.scan, blocks * programs, room[-1], of_whole, compiled_with(warps=1))]
    if len(room) > 1:
        tile, wide = tile_of(scan)
        options = compiled_with(tuning.warps, tuning.registers)
        launches.insert(0, Launch(triton_adjoint.scan, wide * programs, room[0], {**numbers, **tile}, options))
    return launches, gradients


def _empty_gradients(scan: Task, inputs: ScanInputs, blocks: int, segments: int) -> Gradients:
    batch, dim, length = inputs.u.shape
    new, state = inputs.A.new_empty, inputs.A.shape[1]
    parts = (blocks // scan.groups, batch, scan.groups, length, state)
    return Gradients(
        u=empty_like(inputs.u),
        delta=empty_like(inputs.u),
        A=new((batch * segments, state, dim)),
        B=new(parts),
        C=new(parts),
        D=None if inputs.D is None else new((batch * segments, dim)),
        z=None if inputs.z is None else empty_like(inputs.u),
        delta_bias=None if inputs.delta_bias is None else new((batch * segments, dim)),
        initial_state=None if inputs.initial_state is None else new((batch, dim, state)),
    )


def inputs_of(scan: Task) -> dict[str, ScanInputs | None]:
    """The inputs of either direction, as the first two arguments of every kernel."""
    return {"first": scan.directions[0], "second": scan.directions[1] if len(scan.directions) == 2 else None}


def maps_of(scan: Task, parts: int) -> dict[str, Tensor | None]:
    """Room for what each of so many segments does to a state, the last tensors of every kernel."""
    if parts == 1:
        return {"ends": None, "totals": None}
    first = scan.directions[0]
    lead, new = (len(scan.directions), first.u.shape[0], parts), first.A.new_empty
    dim, state = first.A.shape
    return {"ends": new((*lead, state, dim)), "totals": new((*lead, dim))}


def passes(parts: int) -> int:
    """Launches of a scan in so many segments."""
    return 1 if parts == 1 else 2


def tile_of(scan: Task) -> tuple[dict[str, Any], int]:
    """The arguments that say how a forward tile is walked, and how many blocks of channels there are."""
    tuning = scan.tuning
    lanes = tuning.lanes * tuning.warps
    blocks = blocks_of(scan, lanes * tuning.channels)
    arguments = {
        "LANES": lanes,
        "CHANNELS": tuning.channels,
        "UNROLL": tuning.unroll,
        "STAGES": tuning.stages,
        "EVEN": blocks * lanes * tuning.channels == scan.directions[0].u.shape[1],
        "BATCH_FIRST": bool(tuning.batch_first),
    }
    return arguments, blocks


def compiled_with(warps: int, registers: int = 0) -> dict[str, int]:
    """The options of the compiler; products and sums are fused whatever the version's default."""
    return {"num_warps": warps, "enable_fp_fusion": True, **({"maxnreg": registers} if registers else {})}


def blocks_of(scan: Task, width: int) -> int:
    """How many blocks of `width` channels all groups make; a block stays within its group."""
    return scan.groups * -(-scan.directions[0].u.shape[1] // (scan.groups * width))


def shared(scan: Task, segments: int, multiple: int) -> dict[str, Any]:
    """The numbers that every kernel takes, for at most so many segments, each of a multiple of steps."""
    first = scan.directions[0]
    batch, dim, length = first.u.shape
    state = first.A.shape[1]
    steps, parts = triton_segments.cut(length, segments, multiple)
    axes = [dense_strides(first.u), (0, 0, 0) if first.z is None else first.z.stride()]
    return {
        "strides": Strides(*(Axes(batch, dim, constexpr(time)) for batch, dim, time in axes)),
        "batch": batch,
        "length": length,
        "steps": steps,
        "segments": parts,
        "one": 1,
        "A_dim": first.A.stride(0),
        "A_state": first.A.stride(1),
        "width": dim // scan.groups,
        "groups": scan.groups,
        "ROW": scan.row,
        "STATES": state,
        "PADDED": 1 << (state - 1).bit_length(),
        "BOTH": len(scan.directions) == 2,
        "REVERSE": scan.reverse,
        "SOFTPLUS": scan.delta_softplus,
    }
