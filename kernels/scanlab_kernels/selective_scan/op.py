"""The op `selective_scan`: its float64 reference, its hard problems, and the least that it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch

from scanlab.contract.op import Inputs, Op, Work, copy_with_strides, map_tensors
from scanlab.contract.problem import DIRECTIONS, ScanInputs, ScanOutput, ScanProblem, make_inputs
from scanlab.contract.space import Config
from scanlab_kernels.selective_scan import reference as reference_loop

# delta A, drive = (delta u) B, h = decay h + drive, and y += C h: one lane each, for each update of a state.
MULTIPLY_ADDS = 4
# Steps that the reference takes at once: few enough that its tensors stay in the cache.
PIECE = 32


def reference(problem: ScanProblem) -> Callable[..., ScanOutput]:
    """Return the loop in float64 on one thread; without gradients it takes PIECE steps at once."""
    loop = partial(reference_loop.backend.build, config={"threads": 1})
    return loop(problem) if problem.gradients else partial(_in_pieces, loop, problem)


Build = Callable[[ScanProblem], Callable[..., ScanOutput]]


def _in_pieces(build: Build, problem: ScanProblem, *inputs: ScanInputs) -> ScanOutput:
    """Return the outputs of the loop, which sees PIECE steps at a time.

    The same steps in the same order. Whole, a long scan in float64 mostly waits for memory that is new at every call.
    """
    directions = ("forward", "reverse") if problem.direction == "bidirectional" else (problem.direction,)
    results = [
        _one_direction(build, problem.replace(direction=direction), each)
        for direction, each in zip(directions, inputs, strict=True)
    ]
    if len(results) == 1:
        return results[0]
    forward, reverse = results
    return ScanOutput(forward.out + reverse.out, torch.stack((forward.last_state, reverse.last_state)))


def _one_direction(build: Build, problem: ScanProblem, inputs: ScanInputs) -> ScanOutput:
    outs = []
    is_reverse = problem.direction == "reverse"
    starts = range(0, problem.length, PIECE)
    for start in reversed(starts) if is_reverse else starts:
        length = min(PIECE, problem.length - start)
        asked = problem.replace(length=length, has_initial_state=inputs.initial_state is not None)
        out, last_state = build(asked)(_piece(inputs, problem, start, length))
        inputs = inputs.with_tensors(initial_state=last_state)
        outs.append(out)
    return ScanOutput(torch.cat(outs[::-1] if is_reverse else outs, dim=-1), last_state)


def _piece(inputs: ScanInputs, problem: ScanProblem, start: int, length: int) -> ScanInputs:
    """Return the inputs of `length` steps from `start` on; constants and the state before them stay."""
    columns = 2 if problem.complex_A else 1  # interleaved (real, imaginary) pairs
    widths = {"u": 1, "delta": 1, "z": 1, "B": columns, "C": columns}
    tensors = inputs.tensors()
    return inputs.with_tensors(
        **{
            name: tensors[name].narrow(-1, width * start, width * length)
            for name, width in widths.items()
            if name in tensors and tensors[name].dim() > 2
        }
    )


def output_dtypes(inputs: Inputs) -> Mapping[str, torch.dtype]:
    """Return the dtypes of `ScanOutput` for these inputs: those of u and of A."""
    return {"out": inputs[0].u.dtype, "last_state": inputs[0].A.dtype}


def work(problem: ScanProblem) -> Work:
    """Return the least that one forward pass must do: 4 multiply-adds and an exponential for each update of a state."""
    updates = problem.state_updates
    arithmetic = "float64" if problem.dtype == "float64" else "float32"
    return Work(MULTIPLY_ADDS * updates, updates, problem.min_bytes, arithmetic)


# Options of the contract, one corner each for every direction, with and without gradients.
OPTIONS: tuple[dict[str, object], ...] = (
    {},
    {"dtype": "float64"},
    {"dtype": "bfloat16"},
    {"dtype": "float16"},
    {"groups": 2},
    {"groups": 3, "layout": "dim_last"},
    {"constant_B": True},
    {"constant_C": True, "groups": 2},
    {"constant_B": True, "constant_C": True, "has_initial_state": True},
    {"complex_A": True},
    {"complex_A": True, "groups": 2, "has_initial_state": True, "layout": "dim_last"},
    {"complex_A": True, "constant_B": True, "constant_C": True},
    {"has_initial_state": True},
    {"has_D": False},
    {"has_z": False},
    {"has_delta_bias": False},
    {"delta_softplus": False},
    {"has_D": False, "has_z": False, "has_delta_bias": False, "delta_softplus": False},
    {"layout": "dim_last"},
)
# (batch, dim, length, state): the smallest; short of every block; long; a whole block; beyond tiles of 64 channels and
# blocks of 64 steps, at odd and at even lengths.
SIZES = ((1, 1, 1, 1), (3, 5, 2, 7), (1, 3, 301, 1), (2, 32, 64, 16), (1, 130, 65, 3), (1, 65, 130, 2))
PLAIN = ScanProblem(batch=2, dim=6, length=37, state=3)


def _corners() -> Iterator[ScanProblem]:
    for gradients in (False, True):
        for direction in DIRECTIONS:
            asked = PLAIN.replace(direction=direction, gradients=gradients)
            yield from (asked.replace(**options) for options in OPTIONS)
        for batch, dim, length, state in SIZES:
            yield PLAIN.replace(batch=batch, dim=dim, length=length, state=state, gradients=gradients)
    # Faults that show only if an option meets a size beyond a tile or a block.
    for direction in DIRECTIONS:
        wide = PLAIN.replace(batch=1, dim=66, length=67, state=2, direction=direction)
        yield from (wide.replace(**options) for options in OPTIONS)


# Sizes that no tile, chunk or vector divides; with gradients, because a scan can be right and its gradient wrong.
PROBES = (
    ScanProblem(batch=2, dim=67, length=149, state=16),
    ScanProblem(batch=2, dim=19, length=67, state=16, direction="bidirectional", gradients=True, layout="dim_last"),
)


def corners_of(config: Config) -> tuple[ScanProblem, ...]:
    """Return problems that are wider and longer than the largest block that `config` names."""
    largest = max((value for value in config.values() if isinstance(value, int)), default=0)
    if largest < 64:
        return ()
    sizes = ({"dim": largest + 1, "length": 3}, {"dim": 2, "length": largest + 1})
    return tuple(
        PLAIN.replace(batch=1, state=2, direction=direction, gradients=gradients, **each)
        for each in sizes
        for direction, gradients in (("forward", True), ("reverse", False))
    )


def with_channels_in_another_order(problem: ScanProblem, inputs: Inputs, seed: int) -> Inputs:
    """Return `inputs` with the channels of each group in another order, in other memory with the same strides.

    The values are distributed as before and each channel keeps its own; an answer kept for the old inputs is wrong
    for these.
    """
    generator = torch.Generator().manual_seed(seed)
    size = problem.dim // problem.groups
    order = torch.cat([group * size + torch.randperm(size, generator=generator) for group in range(problem.groups)])
    return tuple(_reordered(each, order.to(each.u.device)) for each in inputs)


def _reordered(inputs: ScanInputs, order: torch.Tensor) -> ScanInputs:
    axes = {"u": 1, "delta": 1, "z": 1, "initial_state": 1, "A": 0, "D": 0, "delta_bias": 0}
    axes |= {name: 0 for name in ("B", "C") if getattr(inputs, name).dim() == 2}
    tensors = inputs.tensors()
    copies: ScanInputs = map_tensors(copy_with_strides, inputs)
    for name in axes.keys() & tensors.keys():
        getattr(copies, name).copy_(tensors[name].index_select(axes[name], order))
    return copies


op = Op(
    name="selective_scan",
    summary="the selective scan of Mamba, in one direction of time or in both",
    problem=ScanProblem,
    make_inputs=make_inputs,
    reference=reference,
    output_dtypes=output_dtypes,
    work=work,
    corners=tuple(_corners()),
    probes=PROBES,
    corners_of=corners_of,
    input_suffixes=("", "_reverse"),
    timed_outputs=("out",),
    fresh_inputs=with_channels_in_another_order,
    # On more threads the short steps of the loop mostly wait for the slowest thread: a neighbour on one CPU slows it
    # many times over, and every ratio to it would tell of the neighbour.
    speedups_over="reference:threads=1",
    # `compiled` is not here because it compiles for every new shape, which a caller did not ask for.
    fallbacks=("triton", "native", "chunked", "reference"),
)
