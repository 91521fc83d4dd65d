"""Roofline of this machine: the best rates of one thread, and the shortest time that a problem can take.

Every state update needs at least four arithmetic operations of one lane each: delta A, drive = (delta u) B,
h = decay h + drive and y += C h. An exponential to the accuracy of float32 needs about eight more: two for
the reduction of its range, five for a polynomial, one to put the exponent back. The rate of fused
multiply-adds bounds how fast any of them run. A time below the first bound was not spent on computing the
scan.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from scanlab.contract.cpu import torch_threads, usable_threads
from scanlab.contract.problem import DTYPES, ScanProblem

MIN_OPERATIONS = 4
EXP_OPERATIONS = 8
# A backward pass computes every state again and at least as much again for the gradients.
GRADIENT_FACTOR = 3.0
# The roofline is measured on a machine that may be busy, and clocks differ: a time is refused only this far below it.
SAFETY = 2.0
TRIES = 30
MATMUL_SIZE = 256
COPY_BYTES = 64 << 20


@dataclass(frozen=True)
class Roofline:
    """Best rates of one thread; several threads reach at most as many times these.

    operations_per_s   lanes of fused multiply-adds, by dtype of the arithmetic
    exps_per_s         exponentials of torch, in float32, out of the first cache
    bytes_per_s        read and written, beyond the caches
    wake_s             what it costs to wake another thread and wait for it; None with one usable thread
    """

    operations_per_s: dict[str, float]
    exps_per_s: float
    bytes_per_s: float
    wake_s: float | None

    def min_time_s(self, problem: ScanProblem, threads: int) -> float:
        """Return a lower bound on the time of any computation of `problem`, by arithmetic alone."""
        return problem.state_updates * MIN_OPERATIONS / (self._operations_per_s(problem) * threads * SAFETY)

    def attainable_s(self, problem: ScanProblem, threads: int) -> float:
        """Return the time of a kernel that wastes nothing: the longer of its arithmetic and its memory traffic."""
        operations = problem.state_updates * (MIN_OPERATIONS + EXP_OPERATIONS)
        arithmetic_s = operations / (self._operations_per_s(problem) * threads)
        traffic_s = problem.min_bytes / (self.bytes_per_s * threads)
        return max(arithmetic_s, traffic_s) * (GRADIENT_FACTOR if problem.gradients else 1.0)

    def refuses(self, problem: ScanProblem, threads: int, measured_s: float) -> str | None:
        """Return why `measured_s` cannot be the time of computing `problem`, or None."""
        min_s = self.min_time_s(problem, threads)
        if measured_s >= min_s:
            return None
        return (
            f"{measured_s * 1e3:.3g} ms is less than the {min_s * 1e3:.3g} ms that the arithmetic of"
            f" {problem.state_updates} state updates takes here at least: it did not compute the scan that was timed"
        )

    def _operations_per_s(self, problem: ScanProblem) -> float:
        return self.operations_per_s["float64" if problem.dtype == "float64" else "float32"]


@functools.cache
def roofline_here() -> Roofline:
    """Measure the roofline of the CPU once, in some tenths of a second: the best of many short tries, on one thread.

    The best and not the median, because a neighbour only ever slows a try down, and a rate that is too low
    would call honest work impossible.
    """
    with torch_threads(1):
        operations_per_s = {name: _matmul_operations_per_s(DTYPES[name]) for name in ("float32", "float64")}
        small = torch.linspace(-1.0, 0.0, 4096)
        result = torch.empty_like(small)
        exps_per_s = small.numel() / _best_s(lambda: torch.exp(small, out=result), calls=50)
        source = torch.ones(COPY_BYTES // 4)
        target = torch.empty_like(source)
        bytes_per_s = 2 * COPY_BYTES / _best_s(lambda: target.copy_(source), calls=1, tries=5)
    return Roofline(operations_per_s, exps_per_s, bytes_per_s, _wake_s(usable_threads()))


def _matmul_operations_per_s(dtype: torch.dtype) -> float:
    one, other = (torch.ones(MATMUL_SIZE, MATMUL_SIZE, dtype=dtype) for _ in range(2))
    result = torch.empty_like(one)
    return MATMUL_SIZE**3 / _best_s(lambda: torch.mm(one, other, out=result), calls=2)


def _wake_s(threads: int) -> float | None:
    if threads == 1:
        return None
    # The smallest work that torch shares out: just above its grain of 32768 elements.
    work = torch.ones(40_000)
    seconds = []
    for count in (1, threads):
        with torch_threads(count):
            seconds.append(_best_s(lambda: work.add_(0.0), calls=50))
    alone_s, shared_s = seconds
    return max(0.0, shared_s - alone_s / threads)


def _best_s(action: Callable[[], object], calls: int, tries: int = TRIES) -> float:
    action()
    best_s = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        for _ in range(calls):
            action()
        best_s = min(best_s, (time.perf_counter() - start) / calls)
    return best_s
