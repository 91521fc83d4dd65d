"""Selective scan on a GPU in Triton: time in a loop, states in registers, both directions in one launch.

Kernels: `forward.py`, `backward.py`, its first pass `backward_state_pass.py` where the length is cut into segments, and
`gather_bc.py` where B and C have to be moved first; `tile.py` and `segments.py` hold their parts. `launch.py` makes the
arguments of the kernels and `ops.py` the torch ops. All of these import Triton, so nothing here does before a scan is
built.

With TRITON_INTERPRET=1 in the environment the kernels run on the CPU, in Triton's interpreter. That verifies them and
is far too slow for other uses: the backend then serves only calls that name it.
"""

from __future__ import annotations

from pathlib import Path

import torch

from scanlab.contract.backend import EVERY_DIRECTION, Backend, Capabilities, ScanFn
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
from scanlab.contract.space import Config, Space, Tunable, Value
from scanlab.errors import RejectedError
from scanlab_kernels.build import PACKAGE
from scanlab_kernels.gpu import version

FOLDER = Path(__file__).parent
INTERPRETED = version.interpreted()
ORDERS = ("channels", "batch")
MAX_OFFSET = 2**30  # offsets within a batch entry are 32-bit
FOR_GRADIENTS = ("chunk", "history", "backward_lanes", "backward_channels", "backward_segments")
SEGMENTS = (0, 1, 2, 4, 8, 16, 32, 64)
USUAL_MULTIPROCESSORS = 132  # of an H100, where there is no GPU to ask


def unavailable() -> str | None:
    """Return why no Triton kernel runs here, with the cure, or None."""
    reason = version.unsupported()
    if reason is not None or INTERPRETED:
        return reason
    if not torch.cuda.is_available():
        return "torch sees no GPU; run on a machine with one and install a CUDA build of torch."
    if torch.version.hip is not None:
        return "its kernels are for NVIDIA GPUs and this torch is built for ROCm; choose another backend."
    return None


def forbids(config: Config, problem: ScanProblem) -> str | None:
    """Return why this configuration is not legal for the problem, or None."""
    if int(config["unroll"]) > int(config["chunk"]):
        return "unroll is at most chunk, because the steps of an iteration belong to one chunk"
    if int(config["history"]) > int(config["chunk"]):
        return "history is at most chunk, because it is a part of one"
    if int(config["polynomial"]) > int(config["unroll"]):
        return "polynomial is at most unroll, of which it is a part"
    if not problem.gradients:
        for name in FOR_GRADIENTS:
            if config[name] != backend.space.defaults[name]:
                return f"{name} is for gradients, which this problem does not ask for"
    return None


def with_segments(config: Config, problem: ScanProblem) -> dict[str, Value]:
    """Return the configuration with segments that fill the current GPU where it says 0.

    The forward scan hides latency with about three warps per scheduler, and its first pass costs 0.9 of the scan; the
    backward scan has registers for two, and its first pass costs 0.25: clocks counted in machine code.
    """
    from scanlab_kernels.selective_scan.triton.segments import fill_gpu

    chosen = dict(config)
    for name, lanes, channels, warps, per_scheduler, first_pass in (
        ("segments", "lanes", "channels", int(config["warps"]), 3.0, 0.9),
        ("backward_segments", "backward_lanes", "backward_channels", 1, 2.0, 0.25),
    ):
        if config[name] == 0 and (problem.gradients or name not in FOR_GRADIENTS):
            block = int(config[lanes]) * int(config[channels]) * warps
            blocks = problem.groups * -(-problem.dim // (problem.groups * block))
            unsegmented = blocks * warps * problem.batch * problem.directions
            chosen[name] = fill_gpu(unsegmented, problem.length, multiprocessors(), per_scheduler, first_pass)
    return chosen


def multiprocessors() -> int:
    """Return the multiprocessors of the current GPU, or the usual number where there is none."""
    if not torch.cuda.is_available():
        return USUAL_MULTIPROCESSORS
    found: int = torch.cuda.get_device_properties().multi_processor_count
    return found


def tuning_of(config: Config, problem: ScanProblem) -> list[int]:
    """Return the tunables as the torch ops take them."""
    from scanlab_kernels.selective_scan.triton.launch import Tuning

    chosen = with_segments(config, problem)
    numbers = {name: int(value) for name, value in chosen.items() if name != "order"}
    return list(Tuning(**numbers, batch_first=ORDERS.index(str(chosen["order"]))))


def refuse_absent(problem: ScanProblem) -> None:
    """Raise RejectedError where the installed Triton cannot compile a scan without some of its inputs."""
    given = {"D": problem.has_D, "z": problem.has_z, "delta_bias": problem.has_delta_bias}
    absent = [name for name, present in given.items() if not present]
    if absent and not version.compiles_absent_members():
        raise RejectedError(
            f"triton rejects {problem.key}: before 3.6 Triton does not compile a scan without {', '.join(absent)};"
            " install triton>=3.6."
        )


def make(problem: ScanProblem, config: Config) -> ScanFn:
    """Return the scan; Triton compiles its kernels at the first call of each kind, unless they are in its cache.

    Raises:
        RejectedError: Offsets do not fit 32 bits, or the installed Triton cannot compile the scan.
    """
    checkpoints = int(config["chunk"]) // int(config["history"]) if problem.gradients else 1
    for noun, count in {
        "dim x length": problem.dim * problem.length,
        "state x length": problem.state * problem.length,
        "dim x state x states of a chunk": problem.dim * problem.state * checkpoints,
    }.items():
        if count > MAX_OFFSET:
            raise RejectedError(
                f"triton rejects {problem.key}: {noun} is {count}, and its kernels count to {MAX_OFFSET} within a batch"
                " entry; split the channels or the length."
            )
    if INTERPRETED:
        version.prepare_interpreter()
    else:
        refuse_absent(problem)
    import scanlab_kernels.selective_scan.triton.ops  # noqa: F401 - defines the ops

    settings = (problem.delta_softplus, problem.direction == "reverse", tuning_of(config, problem))
    absent = (None,) * len(ScanInputs._fields)
    ops = torch.ops.scanlab
    op = ops.triton_scan_with_checkpoints.default if problem.gradients else ops.triton_scan.default

    def scan(*inputs: ScanInputs) -> ScanOutput:
        first, second = inputs if len(inputs) == 2 else (inputs[0], absent)
        results = op(*first, *second, *settings)
        return ScanOutput(results[0], results[1])

    return scan


backend = Backend(
    name="triton",
    summary="GPU kernels in Triton" + (", interpreted on the CPU" if INTERPRETED else ""),
    rank=7,
    sources=(*sorted(FOLDER.glob("*.py")), *sorted((PACKAGE / "gpu").glob("*.py")), FOLDER.parent / "arguments.py"),
    space=Space(
        (
            Tunable("lanes", (8, 16, 32), default=32, summary="threads of a warp along dim"),
            Tunable("channels", (1, 2, 4), default=1, summary="channels of a thread"),
            Tunable("unroll", (1, 2, 4, 8), default=4, summary="steps of an iteration of the loop"),
            Tunable("warps", (1, 2, 4), default=1, summary="warps of a program, along dim"),
            Tunable("stages", (1, 2, 3), default=1, summary="iterations whose loads overlap (num_stages)"),
            Tunable(
                "segments", SEGMENTS, default=0, summary="segments of the length scanned in parallel; 0 fills the GPU"
            ),
            Tunable("registers", (0, 96, 128, 168), default=0, summary="registers of a thread at most; 0: no limit"),
            Tunable(
                "polynomial", (0, 1, 2), default=0, summary="steps of an iteration with exponentials by multiply-adds"
            ),
            Tunable("order", ORDERS, default="channels", summary="axis along which neighbouring programs differ"),
            Tunable(
                "chunk",
                (2, 4, 8, 16, 32, 64, 128),
                default=32,
                summary="steps between checkpoints of the backward pass",
            ),
            Tunable("history", (1, 2, 4), default=2, summary="steps of the backward pass kept in registers"),
            Tunable("backward_lanes", (4, 8, 16, 32), default=8, summary="lanes of the backward pass"),
            Tunable("backward_channels", (1, 2, 4, 8), default=4, summary="channels of the backward pass"),
            Tunable("backward_segments", SEGMENTS, default=0, summary="segments of the backward pass"),
        ),
        forbids,
        renamed={f"back_{name}": f"backward_{name}" for name in ("lanes", "channels", "segments")},
    ),
    capabilities=Capabilities(
        devices=("cpu",) if INTERPRETED else ("cuda",),
        dtypes=("float32", "bfloat16", "float16"),
        directions=EVERY_DIRECTION,
        gradients=True,
        groups=True,
        initial_state=True,
        max_state=128,
    ),
    make=make,
    unavailable=unavailable,
    explicit_only=INTERPRETED,
    compiles_each=True,
)
