"""All environment variables of scanlab, and the bounds of its caches."""

from __future__ import annotations

import os
from dataclasses import dataclass

from scanlab.errors import ConfigError


@dataclass(frozen=True)
class Setting:
    """An environment variable.

    Args:
        name: Name in the environment.
        meaning: Effect, in words.
        default: Effect where it is not set, in words.
    """

    name: str
    meaning: str
    default: str

    def get(self) -> str | None:
        """Return its value, or None where it is unset or empty."""
        return os.environ.get(self.name) or None


BACKEND = Setting(
    "SCANLAB_BACKEND", "backend of every problem of its op, such as chunked:chunk=32 for scans", "the profile's choice"
)
STRICT = Setting(
    "SCANLAB_STRICT", "1 makes it an error when something else than the tuned choice serves", "0: a warning"
)
MIXER = Setting(
    "SCANLAB_MIXER",
    "native, triton or torch: implementation of the ops around the scan",
    "the profile's choice, else by device",
)
LINEAR = Setting(
    "SCANLAB_LINEAR",
    "torch, onednn, mkl, native or gemv: backend of products in inference",
    "the profile's choice, else by silicon",
)
PROFILE = Setting("SCANLAB_PROFILE", "path of the profile", "a file for this silicon in the user's data folder")
CACHE = Setting("SCANLAB_CACHE", "folder of compiled kernels", "the user's cache folder")
ISA = Setting("SCANLAB_ISA", "instruction set of the C++ kernels: plain, avx2, avx512, amx or neon", "the CPU's best")
CUDA_ON_CPU = Setting(
    "SCANLAB_CUDA_ON_CPU", "internal: `scanlab run --cpu` sets it to 1 for the processes that a script starts", "unset"
)

ALL = (BACKEND, STRICT, MIXER, LINEAR, PROFILE, CACHE, ISA, CUDA_ON_CPU)

# A dispatcher keeps this many bound scans, and as many decisions; the one bound first goes first.
MAX_KEPT_SCANS = 1024
# Distinct warnings that are logged once; beyond, the oldest may be logged again.
MAX_KEPT_WARNINGS = 256
# Plans that one layer of a model keeps: one for each kind of input.
MAX_KEPT_PLANS = 16


def strict() -> bool:
    """Return True where SCANLAB_STRICT makes fallbacks errors.

    Raises:
        ConfigError: It is neither 0 nor 1.
    """
    value = STRICT.get()
    if value not in (None, "0", "1"):
        raise ConfigError(f"{STRICT.name}={value}: must be 0 or 1.")
    return value == "1"
