"""The C++ kernel: channels in the SIMD lanes, states in registers, time in blocks, both directions in one call.

One build holds the kernel for every instruction set of the processor family and picks at run time. The environment
variable SCANLAB_ISA forces one (plain, avx2, avx512 or neon; amx counts as avx512 here); see `cpu/isa.py`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from scanlab.contract.backend import WHOLE_CONTRACT, Backend, ScanFn
from scanlab.contract.cpu import FOLLOW_TORCH, threads_tunable
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
from scanlab.contract.space import Config, Space, Tunable
from scanlab_kernels.build import PACKAGE, THREADING, WARNINGS, Extension, Unit, headers
from scanlab_kernels.cpu.isa import INSTRUCTION_SETS, chosen_isa, isa_index
from scanlab_kernels.cpu.registration import direct
from scanlab_kernels.selective_scan import arguments as scan_ops
from scanlab_kernels.selective_scan.native import ops as native_ops

FOLDER = Path(__file__).parent
HEADERS = (*headers(FOLDER), *headers(PACKAGE / "cpu"))
# The exponentials of the decays, in the order of `enum class Exp`, and their largest relative errors: those of
# 2^x over every float32 x with -126 <= x < 127.5, on the instruction set that is worst.
EXP_ERRORS = {"fast": 2.5e-7, "exact": 1.8e-7}
EXP_VARIANTS = tuple(EXP_ERRORS)

# Compiler options that the arithmetic of the kernel needs.
ARITHMETIC = ("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")

extension = Extension(
    name="native",
    units=(
        *(
            Unit(FOLDER / "kernels.cpp", (f"-DSCANLAB_TYPE={real}", *isa.flags))
            for real in ("float", "double")
            for isa in reversed(INSTRUCTION_SETS)
        ),
        Unit(FOLDER / "native.cpp", ("-O2",)),
        Unit(FOLDER / "scan.cpp"),
    ),
    flags=("-O3", *WARNINGS, *ARITHMETIC, "-fvisibility=hidden", *THREADING),
    link_flags=THREADING,
    register=native_ops.register,
    stable_abi=True,
)


def forbids(config: Config, problem: ScanProblem) -> str | None:
    """Return why this configuration is not legal for the problem, or None."""
    for special, noun in (
        (problem.dtype == "float64", "float64"),
        (problem.complex_A, "a complex A"),
        (problem.constant_B or problem.constant_C, "a constant B or C"),
    ):
        if config["exp"] == "fast" and special:
            return f"exp=fast is not implemented for {noun}"
    if config["time_chunks"] != 1 and problem.direction == "bidirectional":
        return "two directions meet in one output, which chunks of time may write twice"
    return None


def op_settings(config: Config) -> tuple[int, ...]:
    """Return the last arguments of the op, which name the configuration and the instruction set."""
    names = ("threads", "time_block", "channel_tile", "time_chunks")
    return (*(int(config[name]) for name in names), EXP_VARIANTS.index(str(config["exp"])), isa_index(chosen_isa()))


def make(problem: ScanProblem, config: Config) -> ScanFn:
    """Return the compiled scan; compile it on the first use on a machine."""
    extension.load()
    settings = (problem.delta_softplus, problem.direction == "reverse", *op_settings(config))
    absent = (None,) * len(ScanInputs._fields)
    ops = torch.ops.scanlab
    op = direct(ops.scan_with_checkpoints.default if problem.gradients else ops.scan.default)

    def scan(first: ScanInputs, second: ScanInputs | tuple[None, ...] = absent) -> ScanOutput:
        return ScanOutput._make(op(*(first + second + settings))[:2])

    return scan


def threads_note(problem: ScanProblem, config: Config) -> str | None:
    """Return how many threads a call takes now, and the times that decide that; None if they are configured."""
    if config["threads"] != FOLLOW_TORCH:
        return None
    extension.load()
    sizes = problem.batch, problem.dim, problem.length, problem.state, problem.directions
    threads, work_ns, handover_ns = torch.ops.scanlab.automatic_threads(
        *sizes, problem.dtype == "float64", problem.complex_A
    )
    return (
        f"it takes {threads} of torch's {torch.get_num_threads()} threads, by about {work_ns / 1e3:.3g} us of work and"
        f" {handover_ns / 1e3:.2g} us of handing some over"
    )


backend = Backend(
    name="native",
    summary="C++: channels in SIMD lanes, states in registers, time in blocks",
    rank=6,
    sources=(
        Path(__file__),
        Path(native_ops.__file__),
        Path(scan_ops.__file__),
        *HEADERS,
        *dict.fromkeys(unit.source for unit in extension.units),
    ),
    space=Space(
        (
            threads_tunable(),
            Tunable("time_block", (16, 32, 64, 128), default=64, summary="steps whose step sizes are computed at once"),
            Tunable(
                "channel_tile", (16, 32, 64, 128, 384, 1536), default=64, summary="channels one thread takes at a time"
            ),
            Tunable(
                "time_chunks", (1, 2, 4, 8, 16), default=1, summary="chunks of time scanned at once, for few channels"
            ),
            Tunable(
                "exp",
                EXP_VARIANTS,
                default="exact",
                summary="the exponential of the decays; relative errors up to "
                + ", ".join(f"{error:.1e} ({name})" for name, error in EXP_ERRORS.items()),
            ),
        ),
        forbids,
    ),
    capabilities=WHOLE_CONTRACT,
    make=make,
    unavailable=extension.unavailable,
    note=threads_note,
)
