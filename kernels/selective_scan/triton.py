"""The place of the GPU kernels on the ladder; they are not written yet.

Registered so that `scanlab list` names the rung and what it lacks. The package triton is not imported here,
and absolute imports keep the two names apart.
"""

from __future__ import annotations

from pathlib import Path

import torch

from scanlab.backend import Backend, Capabilities, ScanFn
from scanlab.errors import UnavailableError
from scanlab.problem import ScanProblem
from scanlab.space import Config, Space


def unavailable() -> str | None:
    """Why no Triton kernel runs here, with the cure."""
    if not torch.cuda.is_available():
        return "torch sees no GPU; run on a machine with one and install a CUDA or ROCm build of torch."
    return "its kernels are not written yet; choose a backend that `scanlab list` shows as available."


def make(problem: ScanProblem, config: Config) -> ScanFn:
    """Raises UnavailableError: there is no kernel to build."""
    raise UnavailableError(f"triton cannot run here: {unavailable()}")


backend = Backend(
    name="triton",
    summary="GPU kernels in Triton",
    rung=7,
    sources=(Path(__file__),),
    space=Space(),
    capabilities=Capabilities(devices=("cuda",)),
    make=make,
    unavailable=unavailable,
)
