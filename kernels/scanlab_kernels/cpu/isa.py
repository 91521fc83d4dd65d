"""The instruction sets that the C++ kernels are compiled for: the one list of their names, flags and needs.

The flags of a unit define two macros: SCANLAB_TARGET, its namespace, and SCANLAB_TARGET_NEEDS, the test of the
processor, of which `cpu/isa.h` makes the function `is_supported`. The environment variable SCANLAB_ISA forces an
instruction set at run time.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

from scanlab import settings
from scanlab.contract.machine import this_machine
from scanlab.errors import ConfigError

# Features whose names in the flags of the machine differ from those of GCC and Clang.
SYSTEM_NAMES = {"avx512bf16": "avx512_bf16", "amx-tile": "amx_tile", "amx-bf16": "amx_bf16"}


@dataclass(frozen=True)
class InstructionSet:
    """An instruction set.

    Args:
        name: The value of the macro SCANLAB_TARGET in its units, and of the environment variable SCANLAB_ISA that
            forces it; avx512_bfloat16 cannot be forced, it goes with avx512.
        features: Features that the processor must have, by the names of GCC's options -m...
        defines: Macros of its units.
    """

    name: str
    features: tuple[str, ...] = ()
    defines: tuple[str, ...] = ()

    @property
    def flags(self) -> tuple[str, ...]:
        """Compiler options, macros, and the definition of the test that the processor passes."""
        needs = "&&".join(f"SCANLAB_HAS_{feature.replace('-', '_')}" for feature in self.features) or "true"
        return (
            *(f"-m{feature}" for feature in self.features),
            *(f"-D{name}" for name in (f"SCANLAB_TARGET={self.name}", f"SCANLAB_TARGET_NEEDS={needs}", *self.defines)),
        )

    def is_supported(self) -> bool:
        """Return whether this machine has all features."""
        flags = this_machine().silicon.flags
        return all(SYSTEM_NAMES.get(feature, feature) in flags for feature in self.features)


AVX2 = ("avx2", "fma", "f16c")
AVX512 = (*AVX2, "avx512f", "avx512dq", "avx512bw", "avx512vl")
# For each family of processors, in the order of `enum class Isa`; each includes those before it. `plain` leaves the
# choice to the compiler, which takes the base of the family: SSE2 on x86, NEON on Arm.
FAMILIES = {
    "x86_64": (InstructionSet("plain"), InstructionSet("avx2", AVX2), InstructionSet("avx512", AVX512)),
    "aarch64": (InstructionSet("plain"), InstructionSet("neon", defines=("SCANLAB_NEON",))),
}
# For products in bfloat16 alone, the slower one first. Not every machine with AVX-512 has them.
AVX512_BFLOAT16 = (*AVX512, "avx512bf16")
AMX = InstructionSet("amx", (*AVX512_BFLOAT16, "amx-tile", "amx-bf16"))
BFLOAT16 = {"x86_64": (InstructionSet("avx512_bfloat16", AVX512_BFLOAT16), AMX), "aarch64": ()}

OTHER_NAMES = {"AMD64": "x86_64", "arm64": "aarch64"}
FAMILY = OTHER_NAMES.get(platform.machine(), platform.machine())
INSTRUCTION_SETS = FAMILIES.get(FAMILY, (InstructionSet("plain"),))


def supported_isas() -> tuple[str, ...]:
    """Return the names of the instruction sets of this machine, the fastest last."""
    return tuple(isa.name for isa in INSTRUCTION_SETS if isa.is_supported())


def chosen_isa() -> str:
    """Return the instruction set of the kernels: the one that $SCANLAB_ISA forces, or the fastest.

    It is never AMX, which has products in bfloat16 alone: the other kernels then run on AVX-512.

    Raises:
        ConfigError: This machine lacks the one that is forced.
    """
    supported, asked = supported_isas(), settings.ISA.get()
    legal = (*supported, *[AMX.name] * AMX.is_supported())
    if asked not in (None, *legal):
        known = ", ".join(legal)
        raise ConfigError(f"SCANLAB_ISA={asked!r}: must be one of {known} on this machine; unset it for the best.")
    return supported[-1] if asked in (None, AMX.name) else asked


def may_take_tiles() -> bool:
    """Return whether the CPU has AMX and $SCANLAB_ISA does not exclude it; the system may still refuse it."""
    return AMX.is_supported() and settings.ISA.get() in (None, AMX.name)


def multiplies_bfloat16(isa: str) -> bool:
    """Return whether the kernels of this instruction set have products in bfloat16 that this machine can run."""
    names = (isa, f"{isa}_bfloat16")
    return any(each.name in names and each.is_supported() for each in BFLOAT16.get(FAMILY, ()))


def isa_index(name: str) -> int:
    """Return the position in `enum class Isa` of the instruction set `name`; for AMX that of AVX-512."""
    return [isa.name for isa in INSTRUCTION_SETS].index("avx512" if name == AMX.name else name)
