"""Worker that measures nothing: samples come from a function and take simulated time.

For questions to the logic of choosing, which need the same noise again and again, or noise that no machine makes to
order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

from scanlab.bench.context import BenchmarkContext, Candidate
from scanlab.bench.samples import Block
from scanlab.bench.worker import CandidateFailedError, Evaluation
from scanlab.contract.backend import Backend
from scanlab.contract.verify import Verdict

SAMPLES = 5
VERIFIED = Verdict(passed=True, errors={"out": 1e-7}, tolerances={"out": 2e-5})


class SimulatedTime:
    """Monotonic seconds that pass only when they are told to; the source of a `MeasuringClock`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        """Return the seconds that have passed."""
        return self.seconds


class SimulatedWorker:
    """Worker whose samples are drawn.

    Args:
        time: Advanced by the simulation.
        sample_ns: Draws one sample of a candidate, in nanoseconds.
        disturbance: Returns the disturbance at a simulated second, or None.
        failure: Returns why a candidate crashes when it is prepared, or None.
        build_s: Time of building a candidate.
        verify_s: Time of verifying one.
    """

    isolated = True
    start_s = 4.0

    def __init__(
        self,
        time: SimulatedTime,
        sample_ns: Callable[[Candidate, random.Random], float],
        *,
        seed: int = 0,
        disturbance: Callable[[float], str | None] = lambda second: None,
        failure: Callable[[Candidate], str | None] = lambda candidate: None,
        build_s: Callable[[Candidate], float] = lambda candidate: 0.01,
        verify_s: float = 0.0,
    ) -> None:
        self._time = time
        self._sample_ns = sample_ns
        self._disturbance = disturbance
        self._failure = failure
        self._build_s = build_s
        self._verify_s = verify_s
        self._rng = random.Random(seed)
        self._process = 0
        self._prepared: dict[Candidate, Evaluation] = {}

    def open(self, context: BenchmarkContext, backends: Iterable[Backend]) -> tuple[SimulatedWorker, tuple[str, ...]]:
        """Return itself, as `open_worker` returns a worker."""
        return self, ()

    def verify(self, candidate: Candidate) -> Evaluation:
        return self.prepare(candidate)

    def prepare(self, candidate: Candidate) -> Evaluation:
        if candidate in self._prepared:
            return self._prepared[candidate]
        self._time.seconds += self._build_s(candidate) + self._verify_s
        reason = self._failure(candidate)
        if reason is not None:
            return Evaluation("crashed", reason)
        call_ms = self._sample_ns(candidate, self._rng) / 1e6
        evaluation = Evaluation(
            "ok", None, VERIFIED, 1e3 * self._build_s(candidate), call_ms, calls=1, samples=SAMPLES, call_ms=call_ms
        )
        self._prepared[candidate] = evaluation
        return evaluation

    def take_round(self, candidates: Sequence[Candidate], baseline: Candidate, number: int) -> tuple[Block, ...]:
        for each in candidates:
            if self._failure(each) is not None:
                raise CandidateFailedError(each, str(self._failure(each)))
        begun = self._time.seconds
        taken = [
            tuple(max(1, round(self._sample_ns(each, self._rng))) for _ in range(SAMPLES))
            for each in (*candidates, baseline)
        ]
        self._time.seconds += sum(map(sum, taken)) / 1e9
        disturbed = self._disturbance(begun) or self._disturbance(self._time.seconds)
        return tuple(
            Block(own, taken[-1], "", round=number, process=self._process, disturbed=disturbed) for own in taken[:-1]
        )

    def peak_bytes(self, candidate: Candidate) -> int | None:
        return None

    def release(self, candidates: Iterable[Candidate]) -> None:
        for each in candidates:
            self._prepared.pop(each, None)

    def load(self, context: BenchmarkContext) -> None:
        self._prepared.clear()

    def restart(self, context: BenchmarkContext | None = None) -> None:
        self._prepared.clear()
        self._process += 1
        self._time.seconds += self.start_s

    def disturbance(self, seconds: float) -> str | None:
        self._time.seconds += seconds
        return self._disturbance(self._time.seconds)

    def close(self) -> None:
        self._prepared.clear()
