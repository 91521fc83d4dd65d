"""Which implementation of the mixer's ops serves: native C++ where it can be built or is cached, else PyTorch.

The environment variable SCANLAB_MIXER (native, torch) decides instead, and SCANLAB_ISA forces an instruction
set of the native one. Both are read at the first use in a process.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from scanlab.errors import ConfigError, UnavailableError
from scanlab.kernels.extension import Extension, Unit
from scanlab.kernels.native import HEADERS, ISA_FLAGS, THREADING, chosen_isa

log = logging.getLogger("scanlab")

FOLDER = Path(__file__).parent
SHARED_HEADERS = tuple(header for header in HEADERS if header.name in ("native.h", "native_simd.h", "native_math.h"))

extension = Extension(
    name="mixer",
    units=(
        Unit(FOLDER / "ops.cpp", ("-O1",)),
        Unit(FOLDER / "ops_cpu.cpp", ("-O1",)),
        *(Unit(FOLDER / "kernels.cpp", (f"-DSCANLAB_ISA={isa}", *flags)) for isa, flags in reversed(ISA_FLAGS.items())),
    ),
    headers=(
        *(FOLDER / f"{name}.h" for name in ("mixer", "ops", "tiles", "conv", "norm", "state_update", "thin_linear")),
        *SHARED_HEADERS,
    ),
    flags=("-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", *THREADING),
    link_flags=THREADING,
)


@functools.cache
def implementation() -> Literal["native", "torch"]:
    """What serves CPU tensors in this process; builds the native ops if need be, and says once what it chose.

    Raises UnavailableError where SCANLAB_MIXER=native or SCANLAB_STRICT=1 and the ops can neither be built nor are
    cached, and ConfigError where SCANLAB_MIXER or SCANLAB_ISA hold something else than they may.
    """
    asked = os.environ.get("SCANLAB_MIXER")
    if asked not in (None, "native", "torch"):
        raise ConfigError(f"SCANLAB_MIXER={asked!r}: must be 'native' or 'torch'; unset it to let scanlab choose.")
    if asked == "torch":
        log.info("the mixer's ops run in PyTorch: SCANLAB_MIXER=torch")
        return "torch"
    try:
        extension.load()
    except UnavailableError as error:
        if asked == "native" or os.environ.get("SCANLAB_STRICT") == "1":
            raise
        log.warning("the mixer's ops run in PyTorch, several times slower: %s", error)
        return "torch"
    torch.ops.scanlab_mixer.use_instruction_set(chosen_isa())
    log.info("the mixer's ops run in native C++ (%s)", chosen_isa())
    return "native"


_only_torch = ContextVar("_only_torch", default=False)


@contextmanager
def in_torch() -> Iterator[None]:
    """Run the mixer's ops in PyTorch inside this block: for one forward pass, building takes longer than it saves."""
    token = _only_torch.set(True)
    try:
        yield
    finally:
        _only_torch.reset(token)


def is_native() -> bool:
    """Whether the native ops serve CPU tensors here and now."""
    return not _only_torch.get() and implementation() == "native"


def serves(tensor: Tensor) -> bool:
    """Whether the native ops take this tensor."""
    if torch.compiler.is_compiling():
        # Imported by the trace itself: what marks a constant loads the compiler, which takes seconds.
        from scanlab.mixer.traced import is_native as decided
    else:
        decided = is_native
    return tensor.is_cpu and decided()
