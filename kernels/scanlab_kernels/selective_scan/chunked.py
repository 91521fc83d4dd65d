"""Scan chunk by chunk in a cache-friendly layout, with a loop over the time steps of a chunk in Python.

Decays and states of a chunk stay in the cache from the exponential to the contraction, and every operation runs over
adjacent channels. Memory is bounded by the chunk, also in the backward pass.
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
    """Return the scan in chunks of config["chunk"] time steps, on config["threads"] threads."""
    chunk = int(config["chunk"])
    scan = bidirectional.directed(
        lambda inputs: chunked_scan.scan(inputs, problem, chunk, chunked_scan.eager(recurrence.sequential)), problem
    )
    return pinned(scan, int(config["threads"]))


backend = Backend(
    name="chunked",
    summary="time-major chunks that fit the cache, the state carried between them",
    rank=3,
    sources=(Path(__file__), *files_of(chunked_scan, autograd, recurrence, discretize, bidirectional)),
    space=Space(
        (Tunable("chunk", (8, 16, 32, 64, 128, 256), default=32, summary="time steps of a chunk"), threads_tunable())
    ),
    capabilities=WHOLE_CONTRACT_ANYWHERE,
    make=make,
)
