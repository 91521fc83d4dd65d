"""The mixer's ops in C++, for tensors on the CPU; the environment variable SCANLAB_ISA forces an instruction set."""

from __future__ import annotations

from pathlib import Path

import torch

from scanlab_kernels.build import PACKAGE, Extension, Unit
from scanlab_kernels.selective_scan.native.backend import ISA_FLAGS, THREADING, chosen_isa

FOLDER = Path(__file__).parent
LINEAR = PACKAGE / "linear"

extension = Extension(
    name="mixer",
    units=(
        Unit(FOLDER / "ops.cpp", ("-O1",)),
        Unit(FOLDER / "ops_cpu.cpp", ("-O1",)),
        Unit(LINEAR / "products_cpu.cpp", ("-O1",)),
        *(
            Unit(LINEAR / "bfloat16_products.cpp", ("-DSCANLAB_ISA=avx512_bfloat16", *flags, "-mavx512bf16"))
            for isa, flags in ISA_FLAGS.items()
            if isa == "avx512"
        ),
        *(Unit(FOLDER / "kernels.cpp", (f"-DSCANLAB_ISA={isa}", *flags)) for isa, flags in reversed(ISA_FLAGS.items())),
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
