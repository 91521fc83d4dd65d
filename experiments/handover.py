"""Latency between two CPUs: a value written by one reaches the other in 30 ns through a shared cache, else in 200 ns.

Virtual machines are moved between the two cases; passes whose layers hand their tensors from thread to thread take a
third more time in the second. Pages that time two threads therefore report the latency.
"""

import functools
import math
import os
import sys
from pathlib import Path

import torch

from scanlab_kernels.build import Extension, Unit

TRIES = 3
NEAR_NS = 80.0  # of CPUs that share a cache

extension = Extension(name="handover", units=(Unit(Path(__file__).with_suffix(".cpp")),), link_flags=("-pthread",))


@functools.cache
def _load() -> None:
    extension.load()


def handover_ns() -> float:
    """Return the latency in ns between the first two usable CPUs, the shortest of a few tries, or NaN."""
    cpus = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
    if len(cpus) < 2:
        return math.nan
    _load()
    return min(torch.ops.scanlab_handover.handover_ns(*cpus[:2]) for _ in range(TRIES))


def handover() -> str:
    """Return the latency as a phrase for a caption."""
    return f"a cache line from CPU to CPU in {handover_ns():.0f} ns"
