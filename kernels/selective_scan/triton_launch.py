"""The kernels of one scan with all of their arguments: what the ops run and what can be compiled without a GPU.

Nothing here touches data beyond casts and copies, so that tensors of the device "meta" serve as well.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from scanlab.kernels import triton_adjoint, triton_backward, triton_forward, triton_segments
from scanlab.kernels.triton_tile import Axes, Launch, Strides
from scanlab.problem import ScanInputs

MOST_OFFSET = 2**31 - 1


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

    directions  one or two sets of inputs: u and delta dense and alike in strides, B and C (batch, groups, length,
                state) in float32
    """

    directions: tuple[ScanInputs, ...]
    delta_softplus: bool
    reverse: bool
    tuning: Tuning


class Outputs(NamedTuple):
    """What the forward launches write; `each` is an output for each direction."""

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


def dense(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """`tensor` with these strides; copied where it has others in an axis along which there is anything."""
    if all(
        own == wanted or size == 1 for own, wanted, size in zip(tensor.stride(), strides, tensor.shape, strict=True)
    ):
        return tensor
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def reach(tensor: Tensor) -> int:
    """The largest offset within a batch entry."""
    _, dim, length = tensor.shape
    return (dim - 1) * tensor.stride(1) + (length - 1) * tensor.stride(2)


def rows(values: Tensor) -> Tensor:
    """B or C as (batch, groups, length, state) in float32, dense: one copy, where they are not so already."""
    values = (values[:, None] if values.dim() == 3 else values).mT
    if values.dtype == torch.float32:
        return values.contiguous()
    return values.to(torch.float32, memory_format=torch.contiguous_format)


def task(
    given: tuple[ScanInputs, ...], delta_softplus: bool, reverse: bool, tuning: tuple[int, ...] | list[int]
) -> Task:
    """The scan of `given`, one set of inputs or two, ready for the kernels."""
    strides = dense_strides(given[0].u)
    directions = []
    for each in given:
        vectors = {
            name: tensor.contiguous() for name in ("D", "delta_bias") if (tensor := getattr(each, name)) is not None
        }
        if each.initial_state is not None:
            vectors["initial_state"] = each.initial_state.contiguous()
        if each.z is not None and reach(each.z) > MOST_OFFSET:
            vectors["z"] = dense(each.z, strides)
        u, delta = dense(each.u, strides), dense(each.delta, strides)
        directions.append(each.with_tensors(u=u, delta=delta, B=rows(each.B), C=rows(each.C), **vectors))
    if len(directions) == 2 and _layout(directions[0]) != _layout(directions[1]):
        directions = [
            each._replace(A=each.A.contiguous(), z=None if each.z is None else dense(each.z, strides))
            for each in directions
        ]
    return Task(tuple(directions), delta_softplus, reverse, Tuning(*tuning))


def _layout(inputs: ScanInputs) -> tuple[object, ...]:
    return inputs.A.stride(), None if inputs.z is None else inputs.z.stride()


def forward(scan: Task, keep: bool) -> tuple[list[Launch], Outputs]:
    """The launches of the forward scan, in their order; with `keep` the state before every chunk is kept."""
    tuning, first = scan.tuning, scan.directions[0]
    u, A = first.u, first.A
    batch, dim, length = u.shape
    count, state = len(scan.directions), A.shape[1]
    chunk = tuning.chunk if keep else tuning.unroll
    outputs = Outputs(
        empty_like(u, count),
        A.new_empty((count, batch, dim, state)),
        A.new_empty((count, batch, -(-length // chunk), state, dim)) if keep else None,
    )
    segments = segmented(scan, tuning.segments, chunk)
    tile, blocks = tile_of(scan)
    arguments = {
        **shared(scan),
        **segments,
        **tile,
        "out": outputs.each,
        "last": outputs.last_state,
        "checkpoints": outputs.checkpoints,
        "CHUNK": chunk,
        "BY_PRODUCTS": tuning.polynomial,
    }
    options = compiled_with(tuning.warps, tuning.registers)
    programs = blocks * batch * count * segments["segments"]
    launches = [
        Launch(triton_forward.scan, programs, {**arguments, "ENDS_ALONE": ends_alone}, options)
        for ends_alone in ((True, False) if segments["segments"] > 1 else (False,))
    ]
    return launches, outputs


def backward(
    scan: Task, checkpoints: Tensor, grad_out: Tensor, grad_last: Tensor | None
) -> tuple[list[Launch], tuple[Gradients, ...]]:
    """The launches of the backward scan, in their order, from the states that the forward scan kept."""
    tuning, first = scan.tuning, scan.directions[0]
    batch, dim, _ = first.u.shape
    count, state = len(scan.directions), first.A.shape[1]
    block = tuning.back_lanes * tuning.back_channels
    blocks = blocks_of(scan, block)
    segments = segmented(scan, tuning.back_segments, tuning.chunk)
    parts = segments["segments"]
    gradients = tuple(_empty_gradients(each, blocks, parts) for each in scan.directions)
    within = tuning.chunk // tuning.history
    both = {**shared(scan), **segments, "grad_out": dense(grad_out, dense_strides(first.u))}
    arguments = {
        **both,
        "grad_last": None if grad_last is None else grad_last.contiguous(),
        "checkpoints": checkpoints,
        "scratch": first.A.new_empty((count, batch, parts, within, state, dim) if within > 1 else 0),
        "first_gradients": gradients[0],
        "second_gradients": gradients[1] if count == 2 else None,
        "LANES": tuning.back_lanes,
        "CHANNELS": tuning.back_channels,
        "FULL_LANES": min(block, 32),
        "CHUNK": tuning.chunk,
        "HISTORY": tuning.history,
        "EVEN": blocks * block == dim,
        "BATCH_FIRST": bool(tuning.batch_first),
    }
    programs = batch * count * parts
    launches = [Launch(triton_backward.scan, blocks * programs, arguments, compiled_with(warps=1))]
    if parts > 1:
        tile, wide = tile_of(scan)
        options = compiled_with(tuning.warps, tuning.registers)
        launches.insert(0, Launch(triton_adjoint.scan, wide * programs, {**both, **tile}, options))
    return launches, gradients


def _empty_gradients(inputs: ScanInputs, blocks: int, segments: int) -> Gradients:
    batch, dim, _ = inputs.u.shape
    new, state, groups = inputs.A.new_empty, inputs.A.shape[1], inputs.B.shape[1]
    return Gradients(
        u=empty_like(inputs.u),
        delta=empty_like(inputs.u),
        A=new((batch * segments, state, dim)),
        B=new((blocks // groups, *inputs.B.shape)),
        C=new((blocks // groups, *inputs.B.shape)),
        D=None if inputs.D is None else new((batch * segments, dim)),
        z=None if inputs.z is None else empty_like(inputs.u),
        delta_bias=None if inputs.delta_bias is None else new((batch * segments, dim)),
        initial_state=None if inputs.initial_state is None else new((batch, dim, state)),
    )


def segmented(scan: Task, segments: int, multiple: int) -> dict[str, Any]:
    """The arguments of a kernel for at most so many segments, each of a multiple of steps, and room for their maps."""
    first = scan.directions[0]
    batch, dim, length = first.u.shape
    steps, parts = triton_segments.cut(length, segments, multiple)
    lead, new = (len(scan.directions), batch, parts), first.A.new_empty
    return {
        "steps": steps,
        "segments": parts,
        "ends": new((*lead, first.A.shape[1], dim)) if parts > 1 else None,
        "totals": new((*lead, dim)) if parts > 1 else None,
    }


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
    first = scan.directions[0]
    groups = first.B.shape[1]
    return groups * -(-first.u.shape[1] // (groups * width))


def shared(scan: Task) -> dict[str, object]:
    """The arguments that every kernel takes."""
    first = scan.directions[0]
    batch, dim, length = first.u.shape
    groups, state = first.B.shape[1], first.A.shape[1]
    return {
        "first": first,
        "second": scan.directions[1] if len(scan.directions) == 2 else None,
        "strides": Strides(
            Axes(*dense_strides(first.u)), Axes(0, 0, 0) if first.z is None else Axes(*first.z.stride())
        ),
        "batch": batch,
        "length": length,
        "one": 1,
        "A_dim": first.A.stride(0),
        "A_state": first.A.stride(1),
        "width": dim // groups,
        "groups": groups,
        "STATES": state,
        "PADDED": 1 << (state - 1).bit_length(),
        "BOTH": len(scan.directions) == 2,
        "REVERSE": scan.reverse,
        "SOFTPLUS": scan.delta_softplus,
    }
