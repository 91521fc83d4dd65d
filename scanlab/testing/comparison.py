"""Comparison of backends in one call, for those who write them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from scanlab.bench.clock import MeasuringClock, QuietWait
from scanlab.bench.compare import Comparer
from scanlab.bench.context import BenchmarkContext, Candidate
from scanlab.bench.process_worker import open_worker
from scanlab.bench.store import TrialStore
from scanlab.contract import registry
from scanlab.contract.backend import Backend
from scanlab.contract.base import Problem


@dataclass(frozen=True)
class BackendTime:
    """Time of a backend in a comparison, or the reason why it has none.

    Attributes:
        label: The backend and its configuration.
        median_ms: Median time of a call; None if the backend is wrong, cannot run here, or was not timed.
        is_fastest: Whether none of the others is shown to be faster; several may be tied.
        reason: Why it has no time.
    """

    label: str
    median_ms: float | None = None
    is_fastest: bool = False
    reason: str | None = None


def compare(
    backends: Sequence[Backend | str], problem: Problem, seconds: float = 5.0, seed: int = 0
) -> tuple[BackendTime, ...]:
    """Verify backends against float64, and time those that are right in interleaved rounds.

    Args:
        backends: Backends, or texts that name one, such as "chunked" or "chunked:chunk=32"; tunables that are not
            named have their defaults.
        problem: Problem that every backend solves.
        seconds: Time of measuring.
        seed: Seed of the inputs.

    Returns:
        The winner, then the others by time, then those that have none.

    Raises:
        ConfigError: A text names an unknown tunable, or a configuration is not legal for `problem`.
        UnknownBackendError: A text names an unknown backend.
    """
    selections = [registry.parse_selection(each) if isinstance(each, str) else (each, {}) for each in backends]
    candidates = [Candidate.of(*each, problem) for each in selections]
    inputs = registry.op(problem.op).make_inputs(problem, seed)
    context = BenchmarkContext.of(problem, inputs, f"drawn, seed {seed}", seed)
    worker, _ = open_worker(context, [each.backend for each in candidates])
    clock = MeasuringClock()
    wait = QuietWait(seconds, clock, worker.disturbance)
    try:
        with tempfile.TemporaryDirectory() as folder:
            store = TrialStore(folder)
            with clock.paused():
                for each in candidates:
                    worker.prepare(each)
            compared = Comparer(context, worker, store, clock, wait).compare(candidates, seconds)
    finally:
        worker.close()
    timed = [
        BackendTime(each.trial.label, each.trial.measurement.median_ms, each.place.tied)
        for each in compared.ranking
        if each.trial.measurement is not None
    ]
    failed = [BackendTime(each.label, reason=f"{each.state}: {each.reason}") for each in compared.dropped]
    return (*timed, *failed)
