"""Statistics of the machine code (SASS) of the Triton kernels, compiled for a GPU on a machine without one.

A configuration whose code spills registers, or needs far more instructions than the default, is rarely worth a run; the
compiler says so in seconds on any machine. Nothing in the package depends on this file.
"""

from __future__ import annotations

import collections
import functools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from scanlab.contract.base import DTYPES
from scanlab.contract.problem import ScanInputs, ScanProblem
from scanlab_kernels.gpu import version
from scanlab_kernels.gpu.launch_cache import Launch
from scanlab_kernels.selective_scan.triton import gather_bc, ops
from scanlab_kernels.selective_scan.triton.launch import Tuning

WARP = 32
SPECIAL_CLOCKS = 8  # that an instruction of a warp occupies the special-function unit of a scheduler
# Clocks relative to the default up to which a configuration is worth a run: occupancy may make up for them.
WORTH_RUNNING = 1.5

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
RESOURCES = re.compile(r"REG:(\d+) .*?SHARED:(\d+)")
LABEL = re.compile(r"^\s*\.?(L_x_\d+):")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)\S*\s*(.*?);")
TARGET = re.compile(r"`\(\.?(L_x_\d+)\)")


@dataclass(frozen=True)
class MachineCode:
    """Statistics of a compiled kernel.

    Attributes:
        registers: Registers of a thread.
        spills: Instructions that move registers to memory or back.
        loop_spills: Those of them in innermost loops, which take nearly all of the time.
        shared_bytes: Shared memory of a program.
        loop: Instructions by name in the longest innermost loop, for one thread.
        updates: State updates of one thread in an iteration of that loop.
    """

    registers: int
    spills: int
    loop_spills: int
    shared_bytes: int
    loop: collections.Counter[str]
    updates: float

    @property
    def instructions(self) -> float:
        """Instructions per state update."""
        return self.loop.total() / self.updates

    @property
    def special(self) -> float:
        """Special-function instructions per state update."""
        return self.loop["MUFU"] / self.updates

    @property
    def clocks(self) -> float:
        """Fewest clocks of a scheduler for a warp of state updates, by issue or by the special-function unit."""
        return max(self.instructions, SPECIAL_CLOCKS * self.special)


class Call(NamedTuple):
    """A launch and the tensors that it was called with."""

    launch: Launch
    tensors: tuple[Any, ...]

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments of the kernel by name."""
        return dict(zip(self.launch.kernel.arg_names, self.tensors, strict=False)) | self.launch.numbers


@contextmanager
def captured() -> Iterator[list[Call]]:
    """Collect the launches of the block instead of running them; the ops may be called with tensors on "meta"."""
    calls: list[Call] = []
    original = Launch.__call__
    Launch.__call__ = lambda launch, *tensors: calls.append(Call(launch, tensors))  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        Launch.__call__ = original  # type: ignore[method-assign]


def compiled(call: Call, capability: int, updates: float = 1.0) -> MachineCode:
    """Return the statistics of exactly the code that a call runs on a GPU.

    Args:
        call: The call.
        capability: Compute capability of the GPU: 90 for 9.0.
        updates: State updates of a thread in an iteration of its longest loop.

    Raises Triton's error where the kernel does not compile.
    """
    target = GPUTarget("cuda", capability, WARP)
    backend = make_backend(target)
    kernel, options = call.launch.kernel, call.launch.options
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = bind(**call.arguments, **options)
    pack = version.inside(kernel, "_pack_args", "do without statistics")
    parsed, signature, constants, attributes = pack(backend, options, bound, specialization, options)
    made = triton.compile(
        ASTSource(kernel, signature, constants, attributes), target=target, options=dict(parsed.__dict__)
    )
    return read(made.asm["cubin"], updates)


def updates_of(call: Call, steps: int) -> float:
    """Return the state updates of one thread in some steps of a scan."""
    tile = call.launch.numbers["tile"]
    updates: int = tile.lanes.value * tile.channels.value * tile.padded.value
    return steps * updates / (WARP * call.launch.options["num_warps"])


def read(cubin: bytes, updates: float) -> MachineCode:
    """Return the statistics of a binary, given the updates of its longest loop."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        resources = RESOURCES.search(_run("cuobjdump", "-res-usage", file.name))
        listing = _run("nvdisasm", "-c", file.name)
    assert resources is not None, "cuobjdump names the registers of every kernel"
    instructions, loops = disassembled(listing)
    counts = [collections.Counter(instructions[first:last]) for first, last in loops]
    return MachineCode(
        registers=int(resources[1]),
        spills=_spills(collections.Counter(instructions)),
        loop_spills=sum(map(_spills, counts)),
        shared_bytes=int(resources[2]),
        loop=max(counts, key=collections.Counter.total, default=collections.Counter()),
        updates=updates,
    )


def _spills(counted: collections.Counter[str]) -> int:
    return counted["LDL"] + counted["STL"]


def disassembled(listing: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the names of the instructions of a listing, and where its innermost loops begin and end."""
    labels: dict[str, int] = {}
    names: list[str] = []
    loops: list[tuple[int, int]] = []
    for line in listing.splitlines():
        if label := LABEL.search(line):
            labels[label[1]] = len(names)
        elif found := INSTRUCTION.search(line):
            names.append(found[1])
            target = TARGET.search(found[2])
            if found[1] == "BRA" and target and labels.get(target[1], len(names)) < len(names) - 1:
                loops.append((labels[target[1]], len(names)))
    inner = [
        (first, last)
        for first, last in loops
        if not any((a, b) != (first, last) and first <= a and b <= last for a, b in loops)
    ]
    return names, inner


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta")


def inputs_of(problem: ScanProblem) -> ScanInputs:
    """Return inputs without data, B and C as slices of a projection's output as in a model."""
    dtype = DTYPES[problem.dtype]
    batch, dim, length, state = problem.batch, problem.dim, problem.length, problem.state
    by_time = empty(batch, length, dim, dtype=dtype).mT
    u = by_time if problem.layout == "dim_last" else empty(batch, dim, length, dtype=dtype)
    groups = () if problem.groups == 1 else (problem.groups,)
    rank = dim // 32  # columns of delta before those of B and C, as in Mamba
    B, C = empty(batch, *groups, length, rank + 2 * state, dtype=dtype)[..., rank:].mT.split(state, -2)
    return ScanInputs(
        u=u,
        delta=u,
        A=empty(dim, state),
        B=B,
        C=C,
        D=empty(dim) if problem.has_D else None,
        z=u if problem.has_z else None,
        delta_bias=empty(dim) if problem.has_delta_bias else None,
        initial_state=empty(batch, dim, state) if problem.has_initial_state else None,
    )


def arguments_of(problem: ScanProblem, tuning: Tuning) -> tuple[Any, ...]:
    """Return the arguments of the scan's ops, without data."""
    inputs = inputs_of(problem)
    second = inputs if problem.directions == 2 else (None,) * len(inputs)
    return (*inputs, *second, problem.delta_softplus, problem.direction == "reverse", list(tuning))


def forward_calls(problem: ScanProblem, tuning: Tuning) -> list[Call]:
    """Return the calls of the kernels of the forward scan: its first pass where it has segments, then the scan."""
    with captured() as calls:
        (ops.scan_with_checkpoints if problem.gradients else ops.scan)(*arguments_of(problem, tuning))
    return [call for call in calls if call.launch.kernel is not gather_bc.gather]


def backward_calls(problem: ScanProblem, tuning: Tuning, with_grad_last: bool) -> list[Call]:
    """Return the calls of the kernels of the backward scan, in the same order."""
    arguments = arguments_of(problem, tuning)
    u, A = arguments[0], arguments[2]
    chunks = -(-problem.length // tuning.chunk)
    checkpoints = empty(problem.directions, problem.batch, chunks, problem.state, problem.dim)
    leading = (2,) if problem.directions == 2 else ()
    grad_last = A.new_empty((*leading, problem.batch, *A.shape)) if with_grad_last else None
    with captured() as calls:
        ops.scan_backward(u, grad_last, checkpoints, *arguments)
    return [call for call in calls if call.launch.kernel is not gather_bc.gather]


@functools.lru_cache(maxsize=256)
def forward(problem: ScanProblem, tuning: Tuning, capability: int) -> tuple[MachineCode, ...]:
    """Return the statistics of the kernels of the forward scan, with checkpoints where the problem has gradients."""
    return tuple(compiled(call, capability, updates_of(call, tuning.unroll)) for call in forward_calls(problem, tuning))


@functools.lru_cache(maxsize=256)
def backward(
    problem: ScanProblem, tuning: Tuning, capability: int, with_grad_last: bool = False
) -> tuple[MachineCode, ...]:
    """Return the statistics of the kernels of the backward scan; with_grad_last: the last state has a gradient."""
    calls = backward_calls(problem, tuning, with_grad_last)
    steps = (tuning.unroll, tuning.history)[-len(calls) :]
    return tuple(compiled(call, capability, updates_of(call, count)) for call, count in zip(calls, steps, strict=True))


def refusal(problem: ScanProblem, tuning: Tuning, default: Tuning, capability: int) -> str | None:
    """Return why a configuration is not worth a run on such a GPU, with numbers, or None."""
    for noun, code in (("forward", forward), ("backward", backward))[: 1 + problem.gradients]:
        passes = code(problem, tuning, capability)
        for made in passes:
            if made.loop_spills:
                moves = f"{made.loop_spills} moves to memory and back beside {made.registers} registers"
                return f"the loops of its {noun} kernel spill: {moves}"
        made, usual = passes[-1], code(problem, default, capability)[-1]
        if made.clocks > WORTH_RUNNING * usual.clocks:
            return (
                f"its {noun} kernel needs {made.clocks:.1f} clocks for a state update"
                f" ({made.instructions:.1f} instructions), the default {usual.clocks:.1f}"
            )
    return None
