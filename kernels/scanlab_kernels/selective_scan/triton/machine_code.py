"""What a kernel becomes on a GPU, without one: compiled for its architecture, and the machine code counted.

A configuration whose code spills registers, or needs far more instructions than the default, is not worth a run: that
is known in seconds, on any machine.
"""

from __future__ import annotations

import collections
import functools
import math
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from scanlab.contract.problem import DTYPES, ScanInputs, ScanProblem
from scanlab_kernels.gpu import version as triton_version
from scanlab_kernels.gpu.launch_cache import Launch
from scanlab_kernels.selective_scan.triton import launch as triton_launch
from scanlab_kernels.selective_scan.triton.backend import step_columns
from scanlab_kernels.selective_scan.triton.launch import Task, Tuning

WARP = 32
# The special-function unit takes a quarter of a warp's quarter in a clock, so that one instruction holds it for eight.
SPECIAL_CLOCKS = 8
# How many more clocks of issue than the default needs is still worth a run: layouts and occupancy may make up for it.
WORTH_RUNNING = 1.5

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
RESOURCES = re.compile(r"REG:(\d+) .*?SHARED:(\d+)")
LABEL = re.compile(r"^\s*\.?(L_x_\d+):")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)\S*\s*(.*?);")
TARGET = re.compile(r"`\(\.?(L_x_\d+)\)")


@dataclass(frozen=True)
class MachineCode:
    """A kernel as the GPU gets it.

    registers      of one thread
    spills         instructions that move registers to memory or back, anywhere
    loop_spills    those of them in loops without a loop inside, where all the time goes
    shared_bytes   of one program
    loop           instructions by name of the longest loop without a loop inside, for one thread
    updates        state updates of one thread in a turn of that loop
    """

    registers: int
    spills: int
    loop_spills: int
    shared_bytes: int
    loop: collections.Counter[str]
    updates: float

    @property
    def instructions(self) -> float:
        """Instructions of the loop for each state update."""
        return self.loop.total() / self.updates

    @property
    def special(self) -> float:
        """Instructions of the special-function unit for each state update."""
        return self.loop["MUFU"] / self.updates

    @property
    def clocks(self) -> float:
        """The fewest clocks of a scheduler for a warp of state updates: what issues, or what the special unit takes."""
        return max(self.instructions, SPECIAL_CLOCKS * self.special)


def compiled(launch: Launch, capability: int, updates: float = 1.0) -> MachineCode:
    """The machine code of exactly what `launch` runs on a GPU of this compute capability (90 for 9.0).

    updates  what a thread makes in a turn of its longest loop and instructions are counted for: for scans,
             state updates

    Raises what Triton raises where the kernel does not compile.
    """
    target = GPUTarget("cuda", capability, WARP)
    backend = make_backend(target)
    kernel, arguments = launch.kernel, launch.arguments
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = bind(**arguments, **launch.options)
    pack = triton_version.inside(kernel, "_pack_args", "run the default configuration, which is not checked")
    options, signature, constants, attributes = pack(backend, launch.options, bound, specialization, launch.options)
    made = triton.compile(
        ASTSource(kernel, signature, constants, attributes), target=target, options=dict(options.__dict__)
    )
    return read(made.asm["cubin"], updates)


def updates_of(launch: Launch, steps: int) -> float:
    """The state updates of one thread in so many steps of a scan."""
    tile: list[int] = [launch.arguments[name] for name in ("LANES", "CHANNELS", "PADDED")]
    return steps * math.prod(tile) / (WARP * launch.options["num_warps"])


def read(cubin: bytes, updates: float) -> MachineCode:
    """The facts of a binary whose longest loop makes so many updates."""
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
    """The names of the instructions of a listing, and where the loops without a loop inside begin and end."""
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


def task(problem: ScanProblem, tuning: Tuning) -> Task:
    """The scan that `problem` poses, of tensors without data: B and C as a model has them."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    dtype = DTYPES[problem.dtype]
    batch, dim, length, state = problem.batch, problem.dim, problem.length, problem.state
    by_time = empty(batch, length, dim, dtype=dtype).mT
    u = by_time if problem.layout == "dim_last" else empty(batch, dim, length, dtype=dtype)
    groups = () if problem.groups == 1 else (problem.groups,)
    before = step_columns(dim)
    B, C = empty(batch, *groups, length, before + 2 * state, dtype=dtype)[..., before:].mT.split(state, -2)
    inputs = ScanInputs(
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
    return triton_launch.task(
        (inputs,) * problem.directions, problem.delta_softplus, problem.direction == "reverse", tuning
    )


@functools.lru_cache(maxsize=256)
def forward(problem: ScanProblem, tuning: Tuning, capability: int) -> tuple[MachineCode, ...]:
    """The machine code of the forward scan of a problem, with the states kept where it has gradients.

    One kernel, or two where the length is cut into segments: their first pass stands before the scan itself.
    """
    launches, _ = triton_launch.forward(task(problem, tuning), problem.gradients)
    return tuple(compiled(launch, capability, updates_of(launch, tuning.unroll)) for launch in launches)


@functools.lru_cache(maxsize=256)
def backward(
    problem: ScanProblem, tuning: Tuning, capability: int, by_last_state: bool = False
) -> tuple[MachineCode, ...]:
    """The machine code of the backward scan of a problem, of one kernel or two as of the forward scan.

    by_last_state  whether the last state has a gradient too
    """
    asked = task(problem, tuning)
    _, outputs = triton_launch.forward(asked, keep=True)
    assert outputs.checkpoints is not None
    grad_last = outputs.last_state if by_last_state else None
    launches, _ = triton_launch.backward(asked, outputs.checkpoints, asked.directions[0].u, grad_last)
    turns = (tuning.unroll, tuning.history)[-len(launches) :]
    return tuple(
        compiled(launch, capability, updates_of(launch, steps)) for launch, steps in zip(launches, turns, strict=True)
    )


def refusal(problem: ScanProblem, tuning: Tuning, default: Tuning, capability: int) -> str | None:
    """Why a configuration is not worth a run on a GPU of this compute capability, with numbers, or None."""
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
