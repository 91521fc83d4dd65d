"""Build, verify and time candidates: the worker, which is the unit of evaluation, and one in the calling process.

A worker loads the inputs and the reference outputs of a context once, then prepares candidates (build, first call,
verify, calibrate) and takes rounds of interleaved blocks of them beside a baseline. `LocalWorker` serves backends that
another process does not find by name; nothing in it survives a crash or a hang. The others run in a `ProcessWorker`.
"""

from __future__ import annotations

import math
import mmap
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from scanlab.bench import system_state
from scanlab.bench.context import BenchmarkContext, Candidate
from scanlab.bench.records import State
from scanlab.bench.samples import Block
from scanlab.bench.timing import TimedCall, block_s, calibrate, call_of, input_copies, peak_bytes, take_round
from scanlab.contract.freed_memory import keep_freed_memory
from scanlab.contract.verify import Verdict, verify
from scanlab.errors import ConfigError, RejectedError, ScanlabError, UnavailableError

Result = TypeVar("Result")

# Verification repeats calls for this time, and again with the hard inputs: a data race shows in some calls only.
REPEATS_S = 0.01


@dataclass(frozen=True)
class Evaluation:
    """Outcome of preparing a candidate, which may be timed where `state` is ok.

    Attributes:
        build_ms: Compiling and allocating.
        first_call_ms: The first call, which may compile too.
        calls: Calls in one sample.
        samples: Samples in one block.
        call_ms: Duration of one call, as the calibration saw it.
    """

    state: State
    reason: str | None = None
    verdict: Verdict | None = None
    build_ms: float = 0.0
    first_call_ms: float = 0.0
    calls: int = 1
    samples: int = 1
    call_ms: float = 0.0

    @property
    def block_s(self) -> float:
        """Duration of one block of its samples, about."""
        return block_s(self.calls, self.samples, self.call_ms / 1e3)


def attempt(action: Callable[[], Result]) -> Result | Evaluation:
    """Return what `action` returns, or an evaluation with the reason that it raised."""
    try:
        return action()
    except (ConfigError, RejectedError, UnavailableError) as error:
        return Evaluation("rejected", str(error))
    # A backend is code of any origin and may raise anything; its failure is a result, and must not end the run.
    except Exception as error:  # noqa: BLE001
        return Evaluation("crashed", _text(error))


class CandidateFailedError(ScanlabError):
    """Raised where a prepared candidate raises, or its process dies, while it is timed."""

    def __init__(self, candidate: Candidate, reason: str) -> None:
        super().__init__(f"{candidate.label}: {reason}")
        self.candidate = candidate
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return CandidateFailedError, (self.candidate, self.reason)


class Worker(Protocol):
    """Builds, verifies and times candidates.

    Attributes:
        isolated: Whether candidates run in another process, which may be started afresh.
        start_s: Seconds that the last process took to start and to load the inputs; infinite if there is none.
    """

    isolated: bool
    start_s: float

    def verify(self, candidate: Candidate) -> Evaluation:
        """Build, call and verify `candidate`, without keeping it; any failure is an evaluation too."""

    def prepare(self, candidate: Candidate) -> Evaluation:
        """Build, call, verify and calibrate `candidate`, unless it is prepared; any failure is an evaluation too."""

    def take_round(self, candidates: Sequence[Candidate], baseline: Candidate, number: int) -> tuple[Block, ...]:
        """Take round `number`: one block of each candidate, which must be prepared, beside the baseline.

        Raises:
            CandidateFailedError: One of them raised or ended the process. The others may be timed again.
        """

    def peak_bytes(self, candidate: Candidate) -> int | None:
        """Return the bytes that one call takes beyond the memory in use before it; None if that cannot be known."""

    def release(self, candidates: Iterable[Candidate]) -> None:
        """Drop `candidates`, and free their memory."""

    def load(self, context: BenchmarkContext) -> None:
        """Drop all prepared candidates; continue in `context`, in the same process."""

    def restart(self, context: BenchmarkContext | None = None) -> None:
        """Drop all prepared candidates; continue in a fresh process, in `context` where one is given."""

    def disturbance(self, seconds: float) -> str | None:
        """Wait for `seconds`, and return the disturbance that a block would have seen, or None."""

    def close(self) -> None:
        """End the process and its children."""


class LocalWorker:
    """Worker in the calling process.

    Args:
        process: Number that its blocks carry.
        running: One byte that has the position of the candidate being sampled, plus 1; a parent reads it
            after a crash.
    """

    isolated = False
    start_s = math.inf

    def __init__(self, context: BenchmarkContext, process: int = 0, running: mmap.mmap | None = None) -> None:
        keep_freed_memory()  # as where the candidate would serve
        self._process = process
        self._running = running
        self.load(context)

    def load(self, context: BenchmarkContext) -> None:
        self._context = context
        self._copies = input_copies(context.inputs)
        self._prepared: dict[Candidate, TimedCall] = {}
        self._evaluations: dict[Candidate, Evaluation] = {}
        self._position = -1
        self._rng = random.Random(f"{context.seed} {self._process}")

    def verify(self, candidate: Candidate) -> Evaluation:
        return attempt(lambda: self._built(candidate)[0])

    def prepare(self, candidate: Candidate) -> Evaluation:
        if candidate in self._prepared:
            return self._evaluations[candidate]
        return attempt(lambda: self._calibrated(candidate))

    def _built(self, candidate: Candidate) -> tuple[Evaluation, Callable[[], object]]:
        problem = self._context.problem
        start = time.perf_counter()
        scan = candidate.backend.build(problem, candidate.config)
        call = call_of(scan, problem, self._copies)
        built = time.perf_counter()
        call()
        called = time.perf_counter()
        verdict = _combined([verify(scan, reference, REPEATS_S) for reference in self._context.references])
        reason = None if verdict.passed else verdict.reason or "it disagrees with the reference"
        build_ms, first_call_ms = 1e3 * (built - start), 1e3 * (called - built)
        return Evaluation("ok" if verdict.passed else "wrong", reason, verdict, build_ms, first_call_ms), call

    def _calibrated(self, candidate: Candidate) -> Evaluation:
        evaluation, call = self._built(candidate)
        if evaluation.state != "ok":
            return evaluation
        timed = calibrate(call, self._context.problem.device, candidate.threads)
        evaluation = replace(evaluation, calls=timed.calls, samples=timed.samples, call_ms=1e3 * timed.call_s)
        self._prepared[candidate], self._evaluations[candidate] = timed, evaluation
        return evaluation

    def take_round(self, candidates: Sequence[Candidate], baseline: Candidate, number: int) -> tuple[Block, ...]:
        timed = [self._prepared[each] for each in candidates]
        try:
            return take_round(
                timed, self._prepared[baseline], self._rng, number, self._process, before_sample=self._note
            )
        except Exception as error:  # of the candidate, which may raise anything: see `attempt`
            raise CandidateFailedError((*candidates, baseline)[self._position], _text(error)) from error

    def _note(self, position: int) -> None:
        self._position = position
        if self._running is not None:
            self._running[0] = position + 1

    def peak_bytes(self, candidate: Candidate) -> int | None:
        timed = self._prepared[candidate]
        try:
            return peak_bytes(timed.call, timed.device, timed.threads)
        except Exception as error:  # of the candidate, which may raise anything: see `attempt`
            raise CandidateFailedError(candidate, _text(error)) from error

    def release(self, candidates: Iterable[Candidate]) -> None:
        for each in candidates:
            self._prepared.pop(each, None)
            self._evaluations.pop(each, None)

    def restart(self, context: BenchmarkContext | None = None) -> None:
        self.load(context or self._context)

    def disturbance(self, seconds: float) -> str | None:
        return system_state.observe(seconds)

    def close(self) -> None:
        self._prepared.clear()


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _combined(verdicts: Sequence[Verdict]) -> Verdict:
    """Return one verdict for several: passed where all did, with the largest error of each tensor."""
    errors: dict[str, float] = {}
    tolerances: dict[str, float] = {}
    for verdict in verdicts:
        errors |= {name: max(error, errors.get(name, 0.0)) for name, error in verdict.errors.items()}
        tolerances |= verdict.tolerances
    reasons = dict.fromkeys(verdict.reason for verdict in verdicts if verdict.reason)
    return Verdict(all(verdict.passed for verdict in verdicts), errors, tolerances, "; ".join(reasons) or None)
