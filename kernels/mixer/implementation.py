"""Which implementation of the mixer's ops serves: native C++ where it can be built or is cached, else PyTorch.

The environment variable SCANLAB_MIXER (native, torch) decides instead, and SCANLAB_ISA forces an instruction
set of the native one. Both are read at the first use in a process.
"""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from scanlab.errors import ConfigError, ProblemError, UnavailableError
from scanlab.kernels import native
from scanlab.kernels.extension import Extension, Unit

log = logging.getLogger("scanlab")

FOLDER = Path(__file__).parent
SHARED_HEADERS = tuple(header for header in native.HEADERS if header.name in ("native.h", "native_simd.h"))

extension = Extension(
    name="mixer",
    units=(
        Unit(FOLDER / "ops.cpp", ("-O1",)),
        *(
            Unit(FOLDER / "kernels.cpp", (f"-DSCANLAB_ISA={isa}", *flags))
            for isa, flags in reversed(native.ISA_FLAGS.items())
        ),
    ),
    headers=(*(FOLDER / f"{name}.h" for name in ("mixer", "tiles", "conv", "norm", "state_update")), *SHARED_HEADERS),
    flags=("-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", *native.THREADING),
    link_flags=native.THREADING,
)


@functools.cache
def implementation() -> Literal["native", "torch"]:
    """What serves CPU tensors in this process; builds the native ops if need be, and says once what it chose.

    Raises UnavailableError where SCANLAB_MIXER=native and the ops can neither be built nor are cached, and
    ConfigError where SCANLAB_MIXER or SCANLAB_ISA hold something else than they may.
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
        if asked == "native":
            raise
        log.warning("the mixer's ops run in PyTorch, several times slower: %s", error)
        return "torch"
    torch.ops.scanlab_mixer.use_instruction_set(native.chosen_isa())
    log.info("the mixer's ops run in native C++ (%s)", native.chosen_isa())
    return "native"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch leaves it untyped
def _is_native() -> bool:
    return implementation() == "native"


def serves(tensor: Tensor) -> bool:
    """Whether the native ops take this tensor."""
    return tensor.is_cpu and _is_native()


FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def expect(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise ProblemError unless a floating tensor of this shape lies where `like` does."""
    if tensor.shape != shape:
        raise ProblemError(f"{name} is {tuple(tensor.shape)}: must be {shape}, as the other tensors are shaped.")
    if tensor.dtype not in FLOATING:
        raise ProblemError(f"{name} is {tensor.dtype}: must be float32, float64, bfloat16 or float16.")
    if tensor.device != like.device:
        raise ProblemError(f"{name} is on {tensor.device}, others on {like.device}: move them to one device.")


def expect_int32(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise ProblemError unless an int32 tensor of this shape lies where `like` does."""
    if tensor.shape != shape or tensor.dtype != torch.int32 or tensor.device != like.device:
        raise ProblemError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}:"
            f" must be int32 {shape} on {like.device}."
        )


def wide(tensor: Tensor) -> Tensor:
    """`tensor` in the dtype the ops compute in: float64 stays, all others become float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
