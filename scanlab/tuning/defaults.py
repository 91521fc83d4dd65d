"""Building and verifying before a search: the defaults of every backend, the untuned and the deployed choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from scanlab.bench.clock import MeasuringClock
from scanlab.bench.context import Candidate
from scanlab.bench.worker import Evaluation, Worker
from scanlab.contract.backend import Backend
from scanlab.contract.base import Problem
from scanlab.tuning.build_times import BuildTimes

# Verifying takes at most this share of the budget after the first backend: those left after it take no part.
VERIFYING_SHARE = 0.4


@dataclass(frozen=True)
class BuiltDefaults:
    """Candidates that were built and verified before a search.

    Attributes:
        able: Backends whose defaults passed, the simplest first.
        evaluations: Evaluations of those defaults, and of the untuned and the deployed choice where they passed.
        failed: Defaults of the other backends, with the reason.
    """

    able: tuple[Backend, ...] = ()
    evaluations: Mapping[Candidate, Evaluation] = field(default_factory=dict)
    failed: Mapping[Candidate, Evaluation] = field(default_factory=dict)

    @property
    def defaults(self) -> list[Candidate]:
        """Defaults of the able backends."""
        return [Candidate(backend, backend.space.defaults) for backend in self.able]


@dataclass(frozen=True)
class DefaultsBuilder:
    """Builder of defaults.

    Attributes:
        worker: Builds and verifies.
        clock: Leaves builds out.
        build_times: Estimates of builds, and where they are kept.
        budget_s: Time of the tuning; None for a budget of trials.
        on_build: Called with a line before each build.
    """

    worker: Worker
    clock: MeasuringClock
    build_times: BuildTimes
    budget_s: float | None
    on_build: Callable[[str], None]

    def build(self, problem: Problem, backends: Sequence[Backend], known: Sequence[Candidate]) -> BuiltDefaults:
        """Build and verify the candidates of `known`, and the defaults of `backends`.

        Long builds come last, and simple backends among the others. The share of the budget that verifying may take
        leaves out the last of them, but never all.
        """
        evaluations = {each: self._built(each) for each in dict.fromkeys(known)}
        failed: dict[Candidate, Evaluation] = {}
        needed = {each.backend.name for each in known}
        slow = self.build_times.too_slow([each for each in backends if each.name not in needed], self.budget_s)
        until_s = math.inf
        able: list[Backend] = []
        for backend in sorted(backends, key=lambda each: (each.name not in needed, self._build_s(each), -each.rank)):
            candidate = Candidate(backend, backend.space.defaults)
            refusal = backend.unavailable() or backend.rejects(problem) or slow.get(backend.name)
            if refusal is None and able and self.clock.now() > until_s:
                refusal = (
                    f"verifying the others took {VERIFYING_SHARE:.0%} of the budget of {self.budget_s:.0f} s;"
                    " give it a larger budget, or name it alone with --backends"
                )
            if refusal is not None:
                failed[candidate] = Evaluation("rejected", refusal)
                continue
            evaluation = evaluations.get(candidate) or self._built(candidate)
            if evaluation.state == "ok":
                evaluations[candidate] = evaluation
                able.append(backend)
                if len(able) == 1 and self.budget_s is not None:  # the worker has started by now
                    until_s = self.clock.now() + VERIFYING_SHARE * self.budget_s
            else:
                failed[candidate] = evaluation
        passed = {candidate: each for candidate, each in evaluations.items() if each.state == "ok"}
        return BuiltDefaults(tuple(sorted(able, key=lambda each: each.rank)), passed, failed)

    def _build_s(self, backend: Backend) -> int:
        """Return the estimate of a build in whole seconds; 0 where nothing is known."""
        return round(self.build_times.estimate_s(backend) or 0.0)

    def _built(self, candidate: Candidate) -> Evaluation:
        backend = candidate.backend
        estimate_s = self._build_s(backend)
        about = f" (about {estimate_s} s)" if estimate_s else ""
        self.on_build(f"building {backend.name if candidate.is_default else candidate.label}{about}")
        begun = self.clock.elapsed_s()
        evaluation = self.worker.prepare(candidate)
        if evaluation.state != "ok":
            self.clock.leave_out(self.clock.elapsed_s() - begun)
            return evaluation
        build_s = (evaluation.build_ms + evaluation.first_call_ms) / 1e3
        self.clock.leave_out(build_s)
        self.build_times.add(backend, build_s)
        return evaluation
