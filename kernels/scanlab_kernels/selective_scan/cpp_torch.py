"""Two-phase scan with its loop in a C++ extension that uses the torch C++ API.

The operations and their order are those of `two_phase`; only the Python interpreter is gone from the loop, forward and
backward.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from scanlab.contract.backend import WHOLE_CONTRACT, Backend, ScanFn, files_of
from scanlab.contract.cpu import pinned, threads_tunable
from scanlab.contract.problem import ScanProblem
from scanlab.contract.space import Config, Space
from scanlab_kernels import autograd, build
from scanlab_kernels.selective_scan import bidirectional, discretize, recurrence, two_phase

SOURCE = Path(__file__).with_suffix(".cpp")
LIBRARY = build.Extension("cpp_torch", (build.Unit(SOURCE),), flags=("-O2",))


def solve(decay: Tensor, states: Tensor) -> None:
    """Solve the recurrence step by step in C++; a `Solver`."""
    torch.ops.scanlab_cpp_torch.solve(decay, states)


def make(problem: ScanProblem, config: Config) -> ScanFn:
    """Compile the loop if necessary, and return the scan on config["threads"] threads."""
    LIBRARY.load()
    scan = bidirectional.directed(lambda inputs: two_phase.scan(inputs, problem, solve), problem)
    return pinned(scan, int(config["threads"]))


backend = Backend(
    name="cpp_torch",
    summary="the two-phase loop in C++, one ATen call for each time step",
    rank=2,
    sources=(Path(__file__), SOURCE, *files_of(two_phase, recurrence, autograd, discretize, bidirectional)),
    space=Space((threads_tunable(),)),
    capabilities=WHOLE_CONTRACT,
    make=make,
    unavailable=LIBRARY.unavailable,
)
