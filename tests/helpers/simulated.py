"""Simulated comparisons and tunings: no clock of the machine, no samples of the machine."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

from helpers.fakes import TINY
from scanlab.bench.clock import MeasuringClock, QuietWait
from scanlab.bench.compare import Comparer
from scanlab.bench.context import BenchmarkContext, Candidate
from scanlab.bench.simulated_worker import SimulatedTime, SimulatedWorker
from scanlab.bench.store import TrialStore
from scanlab.contract.problem import make_inputs
from scanlab.tuning.tune import tune


@cache
def tiny_context() -> BenchmarkContext:
    """The context of the tiny problem."""
    return BenchmarkContext.of(TINY, make_inputs(TINY), "made", seed=0)


def noisy(time_ms: Callable[[Candidate], float], noise: float = 0.01) -> Callable[[Candidate, random.Random], float]:
    """Samples around `time_ms`; the reference loop takes 20 ms."""

    def sample_ns(candidate: Candidate, rng: random.Random) -> float:
        milliseconds = 20.0 if candidate.backend.name == "reference" else time_ms(candidate)
        return 1e6 * milliseconds * (1 + abs(rng.gauss(0, noise)))

    return sample_ns


def delays(candidate: Candidate) -> float:
    """The tunable delay_ms, plus 1."""
    return 1.0 + float(candidate.config.get("delay_ms", 0.0))


def simulated(
    folder, time_ms: Callable[[Candidate], float] = delays, noise: float = 0.01, wait_s: float = 10.0, **options
) -> tuple[Comparer, SimulatedTime]:
    """A comparer on a simulated worker."""
    time = SimulatedTime()
    worker, clock = SimulatedWorker(time, noisy(time_ms, noise), **options), MeasuringClock(time)
    wait = QuietWait(wait_s, clock, worker.disturbance)
    return Comparer(tiny_context(), worker, TrialStore(folder), clock, wait), time


def tune_simulated(*arguments, time_ms: Callable[[Candidate], float] = delays, noise: float = 0.01, **options):
    """`tune` on a simulated worker; `worker` holds the options of that."""
    time = SimulatedTime()
    worker = SimulatedWorker(time, noisy(time_ms, noise), **options.pop("worker", {}))
    return tune(*arguments, **(options | {"open_worker": worker.open, "clock": MeasuringClock(time)}))
