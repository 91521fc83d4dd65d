"""The mixer's ops in C++, for tensors on the CPU; the environment variable SCANLAB_ISA forces an instruction set."""

from __future__ import annotations

from pathlib import Path

import torch

from scanlab.kernels.extension import Extension, Unit
from scanlab.kernels.native import HEADERS, ISA_FLAGS, THREADING, chosen_isa

FOLDER = Path(__file__).parent
HEADER_NAMES = (
    *("mixer", "ops", "conv_call", "tiles"),
    *("conv", "packed_linear", "before_scan", "norm", "state_update", "thin_linear"),
)
SHARED = ("native.h", "native_simd.h", "native_math.h", "large_memory.h", "unwritten.h", "derivatives.h")
SHARED_HEADERS = tuple(header for header in HEADERS if header.name in SHARED)

extension = Extension(
    name="mixer",
    units=(
        Unit(FOLDER / "ops.cpp", ("-O1",)),
        Unit(FOLDER / "ops_cpu.cpp", ("-O1",)),
        Unit(FOLDER / "products_cpu.cpp", ("-O1",)),
        *(
            Unit(FOLDER / "bfloat16_products.cpp", ("-DSCANLAB_ISA=avx512_bfloat16", *flags, "-mavx512bf16"))
            for isa, flags in ISA_FLAGS.items()
            if isa == "avx512"
        ),
        *(Unit(FOLDER / "kernels.cpp", (f"-DSCANLAB_ISA={isa}", *flags)) for isa, flags in reversed(ISA_FLAGS.items())),
    ),
    headers=(
        *(FOLDER / f"{name}.h" for name in HEADER_NAMES),
        *SHARED_HEADERS,
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
