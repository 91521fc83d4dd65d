"""The mixer's ops in C++, for tensors on the CPU; the environment variable SCANLAB_ISA forces an instruction set."""

from __future__ import annotations

from pathlib import Path

import torch

from scanlab_kernels.build import PACKAGE, Extension, Unit
from scanlab_kernels.cpu.isa import BFLOAT16, FAMILY, INSTRUCTION_SETS, chosen_isa
from scanlab_kernels.selective_scan.native.backend import THREADING

FOLDER = Path(__file__).parent
LINEAR = PACKAGE / "linear"

extension = Extension(
    name="mixer",
    units=(
        Unit(FOLDER / "ops.cpp", ("-O1",)),
        Unit(FOLDER / "ops_cpu.cpp", ("-O1",)),
        Unit(LINEAR / "products_cpu.cpp", ("-O1",)),
        *(Unit(LINEAR / "bfloat16_products.cpp", isa.flags) for isa in BFLOAT16.get(FAMILY, ())),
        *(Unit(FOLDER / "kernels.cpp", isa.flags) for isa in reversed(INSTRUCTION_SETS)),
    ),
    flags=("-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", *THREADING),
    link_flags=THREADING,
)


def load() -> str:
    """Load the native ops, built if need be, and say on which instruction set they run.

    Raises UnavailableError where they can neither be built nor are cached, and ConfigError where SCANLAB_ISA holds
    something else than it may.
    """
    extension.load()
    torch.ops.scanlab_mixer.use_instruction_set(chosen_isa())
    return f"native C++ ({chosen_isa()})"
