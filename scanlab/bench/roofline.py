"""Roofline of this machine: the best rates of one thread, and the shortest time that a problem can take.

An op states the multiply-adds, the exponentials and the traffic that any implementation of a problem needs at least.
The rate of fused multiply-adds bounds how fast arithmetic runs. A time below that of the multiply-adds alone was not
spent on computing the problem.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from scanlab.bench.system_state import snapshot
from scanlab.contract import registry
from scanlab.contract.base import DTYPES, Problem
from scanlab.contract.cpu import torch_threads

# To the accuracy of float32: two for the reduction of the range, five for a polynomial, one to put the exponent back.
EXP_OPERATIONS = 8
# A backward pass computes the forward pass again and at least as much again for the gradients.
GRADIENT_FACTOR = 3.0
# The roofline is measured on a machine that may be busy, and clocks differ: a time is refused only this far below it.
SAFETY = 2.0
TRIES = 30
# Some dtypes have no fast product on some CPUs: fewer tries of slow products.
MAX_TRIES_S = 0.1
MATMUL_SIZE = 256
COPY_BYTES = 64 << 20


# A roofline that other work disturbed is measured again, up to so many times in a process.
MAX_PASSES = 4


@dataclass(frozen=True)
class Roofline:
    """Best rates of one thread; several threads reach at most as many times these.

    Attributes:
        operations_per_s: Lanes of fused multiply-adds, by the dtype of their operands.
        exps_per_s: Exponentials of torch, in float32, out of the first cache.
        bytes_per_s: Read and written, beyond the caches.
        disturbed: What disturbed the measuring, so that the true rates may be higher; None where nothing did.
    """

    operations_per_s: dict[str, float]
    exps_per_s: float
    bytes_per_s: float
    disturbed: str | None = None

    def best_of_both(self, other: Roofline) -> Roofline:
        """Return the higher of all rates; undisturbed if one of the two is."""
        own, others = self.operations_per_s, other.operations_per_s
        return Roofline(
            {name: max(rate, others[name]) for name, rate in own.items()},
            max(self.exps_per_s, other.exps_per_s),
            max(self.bytes_per_s, other.bytes_per_s),
            self.disturbed and other.disturbed,
        )

    def min_time_s(self, problem: Problem, threads: int) -> float:
        """Return a lower bound on the time of any computation of `problem`, by arithmetic alone."""
        work = registry.op(problem.op).work(problem)
        return work.multiply_adds / (self.operations_per_s[work.arithmetic] * threads * SAFETY)

    def attainable_s(self, problem: Problem, threads: int) -> float:
        """Return the time of a kernel that wastes nothing: the longer of its arithmetic and its memory traffic."""
        work = registry.op(problem.op).work(problem)
        operations = work.multiply_adds + EXP_OPERATIONS * work.exponentials
        arithmetic_s = operations / (self.operations_per_s[work.arithmetic] * threads)
        traffic_s = work.traffic_bytes / (self.bytes_per_s * threads)
        return max(arithmetic_s, traffic_s) * (GRADIENT_FACTOR if problem.gradients else 1.0)

    def refuses(self, problem: Problem, threads: int, measured_s: float) -> str | None:
        """Return why `measured_s` cannot be the time of computing `problem`, or None."""
        min_s = self.min_time_s(problem, threads)
        if measured_s >= min_s:
            return None
        return (
            f"{measured_s * 1e3:.3g} ms is less than the {min_s * 1e3:.3g} ms that the arithmetic of {problem.key}"
            " takes here at least: it did not compute the problem that was timed"
        )


class RooflineMeter:
    """Measures the roofline of a machine; again, a few times in all, where other work disturbed it.

    Args:
        measure: Measures it once.
    """

    def __init__(self, measure: Callable[[], Roofline]) -> None:
        self._measure = measure
        self._best: Roofline | None = None
        self._passes = 0

    def __call__(self) -> Roofline:
        """Return the best rates so far."""
        best = self._best
        if best is None or (best.disturbed is not None and self._passes < MAX_PASSES):
            self._passes += 1
            measured = self._measure()
            best = self._best = measured if best is None else best.best_of_both(measured)
        return best


def measure_roofline() -> Roofline:
    """Measure the roofline of the CPU in some tenths of a second: the best of many short tries, on one thread.

    The best and not the median, because a neighbour only ever slows a try down, and a rate that is too low
    would call honest work impossible.
    """
    before = snapshot()
    with torch_threads(1):
        operations_per_s = {name: _matmul_operations_per_s(DTYPES[name]) for name in DTYPES}
        small = torch.linspace(-1.0, 0.0, 4096)
        result = torch.empty_like(small)
        exps_per_s = small.numel() / _best_s(lambda: torch.exp(small, out=result), calls=50)
        source = torch.ones(COPY_BYTES // 4)
        target = torch.empty_like(source)
        bytes_per_s = 2 * COPY_BYTES / _best_s(lambda: target.copy_(source), calls=1, tries=5)
    return Roofline(operations_per_s, exps_per_s, bytes_per_s, before.until(snapshot()).disturbed)


roofline_here = RooflineMeter(measure_roofline)


def _matmul_operations_per_s(dtype: torch.dtype) -> float:
    one, other = (torch.ones(MATMUL_SIZE, MATMUL_SIZE, dtype=dtype) for _ in range(2))
    result = torch.empty_like(one)
    return MATMUL_SIZE**3 / _best_s(lambda: torch.mm(one, other, out=result), calls=2)


def _best_s(action: Callable[[], object], calls: int, tries: int = TRIES) -> float:
    action()
    best_s = float("inf")
    begun = time.perf_counter()
    for done in range(tries):
        if done and time.perf_counter() - begun > MAX_TRIES_S:
            break
        start = time.perf_counter()
        for _ in range(calls):
            action()
        best_s = min(best_s, (time.perf_counter() - start) / calls)
    return best_s
