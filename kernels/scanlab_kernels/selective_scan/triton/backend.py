"""The scan on a GPU, in Triton: time in a loop, states in registers, both directions in one launch.

The kernels: `triton_forward.py`, `triton_backward.py`, and `triton_adjoint.py`, the first pass of the latter where the
length is cut into segments; `triton_rows.py`, where B and C have to be moved first. What they are made of:
`triton_math.py`, `triton_tile.py`, `triton_segments.py`. Around them: `triton_launch.py` (their arguments),
`triton_queue.py` (a launch, and the next one of its kind), `triton_ops.py` (torch ops), `triton_compile.py` (machine
code, without a GPU), `triton_version.py`. None of these is imported before a scan is built; absolute imports keep this
module and the package triton apart.

With TRITON_INTERPRET=1 in the environment the kernels run on the CPU, in Triton's interpreter, and on nothing else:
that proves them, and is far too slow for anything besides, so that they serve only who asks for them by name.
"""

from __future__ import annotations

from pathlib import Path

import torch

from scanlab.contract.backend import EVERY_DIRECTION, Backend, Capabilities, ScanFn
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
from scanlab.contract.space import Config, Space, Tunable, Value, config_key
from scanlab.errors import RejectedError
from scanlab_kernels.build import PACKAGE
from scanlab_kernels.gpu import version as triton_version

FOLDER = Path(__file__).parent
INTERPRETED = triton_version.interpreted()
ORDERS = ("channels", "batch")
LARGEST = 2**30  # offsets within a batch entry are 32-bit
FOR_GRADIENTS = ("chunk", "history", "back_lanes", "back_channels", "back_segments")
SEGMENTS = (0, 1, 2, 4, 8, 16, 32, 64)
USUAL_MULTIPROCESSORS = 132  # an H100's, where there is no GPU to ask


def unavailable() -> str | None:
    """Why no Triton kernel runs here, with the cure."""
    reason = triton_version.unsupported()
    if reason is not None or INTERPRETED:
        return reason
    if not torch.cuda.is_available():
        return "torch sees no GPU; run on a machine with one and install a CUDA build of torch."
    if torch.version.hip is not None:
        return "its kernels are for NVIDIA GPUs and this torch is built for ROCm; choose another backend."
    return None


def forbids(config: Config, problem: ScanProblem) -> str | None:
    """Why this configuration is not legal for the problem, or None."""
    if int(config["unroll"]) > int(config["chunk"]):
        return "unroll is at most chunk, because the steps of a turn belong to one chunk"
    if int(config["history"]) > int(config["chunk"]):
        return "history is at most chunk, because it is a part of one"
    if int(config["polynomial"]) > int(config["unroll"]):
        return "polynomial is at most unroll, of which it is a part"
    if not problem.gradients:
        for name in FOR_GRADIENTS:
            if config[name] != backend.space.defaults[name]:
                return f"{name} is for gradients, which this problem does not ask for"
    return None


def settled(config: Config, problem: ScanProblem) -> dict[str, Value]:
    """The configuration with as many segments as give the GPU that torch has current enough to do, where it says 0.

    The forward scan hides latency with about three warps of a scheduler, and its first pass takes nine tenths of it;
    the way back has registers for two, and its first pass takes a quarter: clocks, counted in machine code.
    """
    from scanlab_kernels.selective_scan.triton.segments import enough

    chosen = dict(config)
    for name, lanes, channels, warps, per_scheduler, first_pass in (
        ("segments", "lanes", "channels", int(config["warps"]), 3.0, 0.9),
        ("back_segments", "back_lanes", "back_channels", 1, 2.0, 0.25),
    ):
        if config[name] == 0 and (problem.gradients or name not in FOR_GRADIENTS):
            block = int(config[lanes]) * int(config[channels]) * warps
            blocks = problem.groups * -(-problem.dim // (problem.groups * block))
            in_one_piece = blocks * warps * problem.batch * problem.directions
            chosen[name] = enough(in_one_piece, problem.length, multiprocessors(), per_scheduler, first_pass)
    return chosen


def multiprocessors() -> int:
    """Those of the GPU that torch has current, or the usual ones where there is none."""
    if not torch.cuda.is_available():
        return USUAL_MULTIPROCESSORS
    found: int = torch.cuda.get_device_properties().multi_processor_count
    return found


def step_columns(dim: int) -> int:
    """Columns of a projection's output before those of B and C, in a Mamba of so many channels: for its step sizes."""
    return dim // 32


def tuning(config: Config) -> list[int]:
    """A settled configuration as the ops take it."""
    from scanlab_kernels.selective_scan.triton.launch import Tuning

    numbers = {name: int(value) for name, value in config.items() if name != "order"}
    return list(Tuning(**numbers, batch_first=ORDERS.index(str(config["order"]))))


def refuse_absent(problem: ScanProblem) -> None:
    """Raise RejectedError where the installed Triton cannot compile a scan without some of its inputs."""
    there = {"D": problem.has_D, "z": problem.has_z, "delta_bias": problem.has_delta_bias}
    absent = [name for name, present in there.items() if not present]
    if absent and not triton_version.compiles_absent_members():
        raise RejectedError(
            f"triton rejects {problem.key}: before 3.6 Triton does not compile a scan without {', '.join(absent)};"
            " install triton>=3.6."
        )


def refuse_poor_code(problem: ScanProblem, chosen: list[int]) -> None:
    """Raise RejectedError where the machine code of a configuration other than the default is not worth a run."""
    from scanlab_kernels.selective_scan.triton import machine_code as triton_compile
    from scanlab_kernels.selective_scan.triton.launch import Tuning

    default = tuning(settled(backend.space.defaults, problem))
    in_pieces = {name: getattr(Tuning(*chosen), name) for name in ("segments", "back_segments")}
    if list(Tuning(*default)._replace(**in_pieces)) == chosen:
        return
    major, minor = torch.cuda.get_device_capability()
    reason = triton_compile.refusal(problem, Tuning(*chosen), Tuning(*default), 10 * major + minor)
    if reason is not None:
        raise RejectedError(f"triton rejects {config_key(Tuning(*chosen)._asdict())} for {problem.key}: {reason}.")


def make(problem: ScanProblem, config: Config) -> ScanFn:
    """The scan as an op; Triton compiles its kernels at the first call with tensors of a kind, unless it kept them.

    A configuration other than the default is compiled here, for the GPU that torch has current. Raises RejectedError
    where its machine code is not worth a run, and where offsets do not fit 32 bits.
    """
    kept = int(config["chunk"]) // int(config["history"]) if problem.gradients else 1
    for noun, count in {
        "dim x length": problem.dim * problem.length,
        "state x length": problem.state * problem.length,
        "dim x state x states of a chunk": problem.dim * problem.state * kept,
    }.items():
        if count > LARGEST:
            raise RejectedError(
                f"triton rejects {problem.key}: {noun} is {count}, and its kernels count to {LARGEST} within a batch"
                " entry; split the channels or the length."
            )
    chosen = tuning(settled(config, problem))
    if not INTERPRETED:
        refuse_absent(problem)
        refuse_poor_code(problem, chosen)
    return scan_of(problem, chosen)


def scan_of(problem: ScanProblem, chosen: list[int]) -> ScanFn:
    """The scan under a tuning that is known to be worth a run."""
    if INTERPRETED:
        triton_version.prepare_interpreter()
    import scanlab_kernels.selective_scan.triton.ops  # noqa: F401 - defines the ops

    settings = (problem.delta_softplus, problem.direction == "reverse", chosen)
    absent = (None,) * len(ScanInputs._fields)
    ops = torch.ops.scanlab
    op = ops.triton_scan_with_checkpoints.default if problem.gradients else ops.triton_scan.default

    def scan(*inputs: ScanInputs) -> ScanOutput:
        ahead, back = inputs if len(inputs) == 2 else (inputs[0], absent)
        results = op(*ahead, *back, *settings)
        return ScanOutput(results[0], results[1])

    return scan


backend = Backend(
    name="triton",
    summary="GPU kernels in Triton" + (", interpreted on the CPU" if INTERPRETED else ""),
    rank=7,
    sources=(*sorted(FOLDER.glob("*.py")), *sorted((PACKAGE / "gpu").glob("*.py")), FOLDER.parent / "arguments.py"),
    space=Space(
        (
            Tunable("lanes", (8, 16, 32), default=32, summary="threads of a warp side by side along dim"),
            Tunable("channels", (1, 2, 4), default=1, summary="channels of one thread"),
            Tunable("unroll", (1, 2, 4, 8), default=4, summary="steps of one turn of the loop"),
            Tunable("warps", (1, 2, 4), default=1, summary="warps of one program, side by side along dim"),
            Tunable("stages", (1, 2, 3), default=1, summary="turns of the loop whose loads are under way at once"),
            Tunable(
                "segments", SEGMENTS, default=0, summary="parts of the length scanned at once; 0: enough for the GPU"
            ),
            Tunable("registers", (0, 96, 128, 168), default=0, summary="registers of a thread at most; 0: no limit"),
            Tunable("polynomial", (0, 1, 2), default=0, summary="steps of a turn whose exponentials are multiply-adds"),
            Tunable("order", ORDERS, default="channels", summary="along what neighbouring programs differ"),
            Tunable(
                "chunk", (2, 4, 8, 16, 32, 64, 128), default=32, summary="steps between two states kept for gradients"
            ),
            Tunable("history", (1, 2, 4), default=2, summary="steps of the way back held in registers"),
            Tunable("back_lanes", (4, 8, 16, 32), default=8, summary="like lanes, on the way back"),
            Tunable("back_channels", (1, 2, 4, 8), default=4, summary="like channels, on the way back"),
            Tunable("back_segments", SEGMENTS, default=0, summary="like segments, on the way back"),
        ),
        forbids,
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
)
