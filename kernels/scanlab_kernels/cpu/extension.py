"""The ops of a Mamba block in C++, for tensors on the CPU; SCANLAB_ISA forces an instruction set."""

from __future__ import annotations

from pathlib import Path

import torch

from scanlab_kernels.build import PACKAGE, THREADING, WARNINGS, Extension, Unit
from scanlab_kernels.cpu.isa import BFLOAT16, FAMILY, INSTRUCTION_SETS, chosen_isa

FOLDER = Path(__file__).parent
# The ops on torch's tensors, which only check and describe: optimising them gains nothing.
OPS = (
    PACKAGE / "linear" / "native.cpp",
    PACKAGE / "mamba_front" / "native.cpp",
    PACKAGE / "causal_conv1d" / "native.cpp",
    PACKAGE / "add_norm" / "native.cpp",
    PACKAGE / "state_update" / "native.cpp",
    PACKAGE / "state_update" / "mixer_step.cpp",
    FOLDER / "library.cpp",
)

extension = Extension(
    name="mixer",
    units=(
        *(Unit(FOLDER / "kernels.cpp", isa.flags) for isa in reversed(INSTRUCTION_SETS)),
        *(Unit(PACKAGE / "linear" / "bfloat16.cpp", isa.flags) for isa in BFLOAT16.get(FAMILY, ())),
        *(Unit(source, ("-O1",)) for source in OPS),
    ),
    flags=("-O3", *WARNINGS, "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", *THREADING),
    link_flags=THREADING,
)


def unavailable() -> str | None:
    """Return why the native ops can neither be built here nor are they cached, or None."""
    return extension.unavailable()


_loaded = False


def is_loaded() -> bool:
    """Return whether `load` has succeeded in this process."""
    return _loaded


def load() -> str:
    """Load the native ops, built if need be, and return their name with the instruction set that they run on.

    Raises:
        UnavailableError: They can neither be built nor are they cached.
        ConfigError: SCANLAB_ISA has an illegal value.
    """
    global _loaded
    extension.load()
    torch.ops.scanlab_mixer.use_instruction_set(chosen_isa())
    _loaded = True
    return f"native C++ ({chosen_isa()})"
