"""Scan of a feature map in four directions by one C++ op, for inference.

Channels lie in the SIMD lanes, so that a step is a row of adjacent numbers wherever its position lies in the map: every
direction reads the map as it is, and no direction needs a copy.
"""

from __future__ import annotations

from pathlib import Path

import torch

from scanlab.contract.backend import Backend, OpCapabilities
from scanlab.contract.base import DTYPES
from scanlab.contract.cpu import pinned, threads_tunable
from scanlab.contract.forks import has_forked
from scanlab.contract.space import Config, Space, Tunable
from scanlab_kernels import flop_formulas
from scanlab_kernels.build import PACKAGE, THREADING, WARNINGS, Extension, Unit, headers
from scanlab_kernels.cpu.isa import INSTRUCTION_SETS, chosen_isa, isa_index
from scanlab_kernels.cpu.registration import direct, refuse_gradients, register_shapes
from scanlab_kernels.cross_scan_2d.problem import CrossScanFn, CrossScanInputs, CrossScanOutput, CrossScanProblem
from scanlab_kernels.selective_scan.native.backend import ARITHMETIC, EXP_VARIANTS

FOLDER = Path(__file__).parent
LOOP = PACKAGE / "selective_scan" / "native"
CURE = "take the backend cross_scan_2d_composed, which has them."


def register() -> None:
    """Register gradients and shapes of the C++ op."""
    ops = torch.ops.scanlab_cross_scan
    if has_forked():
        ops.note_fork()
    refuse_gradients(ops.cross_scan_2d.default, CURE)
    register_shapes(ops.cross_scan_2d.default, lambda u, *_: torch.empty_like(u))
    flop_formulas.count("scanlab_cross_scan")


extension = Extension(
    name="cross_scan_2d",
    units=(
        *(
            Unit(FOLDER / "kernels.cpp", (f"-DSCANLAB_TYPE={real}", *isa.flags))
            for real in ("float", "double")
            for isa in reversed(INSTRUCTION_SETS)
        ),
        Unit(FOLDER / "native.cpp", ("-O2",)),
    ),
    flags=("-O3", *WARNINGS, *ARITHMETIC, "-fvisibility=hidden", *THREADING),
    link_flags=THREADING,
    register=register,
    stable_abi=True,
)


def forbids(config: Config, problem: CrossScanProblem) -> str | None:
    """Return why this configuration is not legal for the problem, or None."""
    return "exp=fast is not implemented for float64" if config["exp"] == "fast" and problem.dtype == "float64" else None


def make(problem: CrossScanProblem, config: Config) -> CrossScanFn:
    """Return the compiled scan; compile it on the first use on a machine."""
    extension.load()
    op = direct(torch.ops.scanlab_cross_scan.cross_scan_2d.default)
    settings = (
        problem.delta_softplus,
        int(config["time_block"]),
        EXP_VARIANTS.index(str(config["exp"])),
        isa_index(chosen_isa()),
    )

    def cross_scan_2d(inputs: CrossScanInputs) -> CrossScanOutput:
        return CrossScanOutput(op(*inputs, *settings))

    return pinned(cross_scan_2d, int(config["threads"]))


backend = Backend(
    name="cross_scan_2d_native",
    summary="C++, the map read where it lies along every direction",
    rank=2,
    sources=(
        *(FOLDER / name for name in ("native.py", "problem.py", "native.cpp", "kernels.cpp")),
        *headers(FOLDER),
        *headers(LOOP),
        *headers(PACKAGE / "cpu"),
    ),
    space=Space(
        (
            threads_tunable(),
            Tunable("time_block", (8, 16, 32, 64, 128), default=64, summary="steps discretised at once, in one line"),
            Tunable("exp", EXP_VARIANTS, default="exact", summary="exponential of the decays"),
        ),
        forbids,
    ),
    capabilities=OpCapabilities(dtypes=tuple(DTYPES)),
    make=make,
    unavailable=extension.unavailable,
    op="cross_scan_2d",
)
