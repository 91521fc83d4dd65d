"""Parallel scan: within a chunk the recurrence is solved in 2 log2(chunk) wide steps instead of chunk narrow ones.

It does twice the arithmetic of the loop in a fraction of its steps, which is faster where a step is narrow (few
channels), where calls are expensive, and on massively parallel machines.
"""

from __future__ import annotations

from pathlib import Path

from scanlab.contract.backend import WHOLE_CONTRACT_ANYWHERE, Backend, ScanFn, files_of
from scanlab.contract.cpu import pinned, threads_tunable
from scanlab.contract.problem import ScanProblem
from scanlab.contract.space import Config, Space, Tunable
from scanlab_kernels import autograd
from scanlab_kernels.selective_scan import bidirectional, chunked_scan, discretize, recurrence


def make(problem: ScanProblem, config: Config) -> ScanFn:
    """Return the associative scan in chunks of config["chunk"] time steps, on config["threads"] threads."""
    chunk = int(config["chunk"])
    scan = bidirectional.directed(
        lambda inputs: chunked_scan.scan(inputs, problem, chunk, chunked_scan.eager(recurrence.logarithmic)), problem
    )
    return pinned(scan, int(config["threads"]))


backend = Backend(
    name="associative",
    summary="the log-depth parallel scan within chunks, the state carried between them",
    rank=4,
    sources=(Path(__file__), *files_of(chunked_scan, autograd, recurrence, discretize, bidirectional)),
    space=Space(
        (Tunable("chunk", (16, 32, 64, 128, 256, 512), default=64, summary="time steps of a chunk"), threads_tunable())
    ),
    capabilities=WHOLE_CONTRACT_ANYWHERE,
    make=make,
)
