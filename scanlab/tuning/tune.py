"""From a problem to a choice: every backend verified and searched within a budget, and the best compared twice.

1. `build_defaults` builds and verifies the defaults of every backend. The fastest is the baseline of all timings.
2. `search` asks each `Search` for configurations, evaluates them, and tells it the trials.
3. `compare` times `selection.finalists` side by side, and `ranking.choose` takes the winner of the comparison.
4. `selection.hold_out` measures the finalists again on fresh inputs, and `confirmed` confirms the winner or demotes it.
5. `selection.exact_enough` passes over winners whose error exceeds the one that was asked for.

The winner serves once `runtime.deployment.deploy` puts it into the profile, unless stronger evidence is there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace

from scanlab.bench.clock import MeasuringClock, QuietWait
from scanlab.bench.compare import Comparer
from scanlab.bench.context import BenchmarkContext, Candidate
from scanlab.bench.objective import Objective
from scanlab.bench.process_worker import open_worker
from scanlab.bench.ranking import Comparison
from scanlab.bench.records import Trial
from scanlab.bench.samples import Block, Measurement
from scanlab.bench.store import TrialStore
from scanlab.bench.trials import Baseline, reference_candidate, time_reference, trial_of
from scanlab.bench.worker import CandidateFailedError, Evaluation, Worker
from scanlab.contract.backend import Backend
from scanlab.contract.base import Problem
from scanlab.contract.op import Inputs
from scanlab.errors import RejectedError
from scanlab.tuning.build_times import NO_BUILD_TIMES, BuildTimes
from scanlab.tuning.defaults import BuiltDefaults, DefaultsBuilder
from scanlab.tuning.fleet.overview import publish
from scanlab.tuning.fleet.storage import open_storage
from scanlab.tuning.fleet.study_summary import summarize_studies
from scanlab.tuning.result import Event, EventKind, TuningResult
from scanlab.tuning.scheduler import HOLDOUT_SHARE, MIN_TRIALS, Budget, Scheduler
from scanlab.tuning.search import Search, has_converged, should_prune, upper_end
from scanlab.tuning.selection import exact_enough, finalists, fresh_processes, hold_out
from scanlab.tuning.warm_start import (
    recorded_baseline,
    winners_on_nearest_machines,
    winners_on_similar_problems,
)

# The reference is timed beside the baseline for at most this share of the budget.
REFERENCE_SHARE = 0.06
REFERENCE_S = 5.0
# Waiting for a busy machine takes at most this share of the budget, and so long for a budget of trials.
MAX_WAIT_SHARE = 0.3
MAX_WAIT_S = 60.0
# Interval of polling other processes that try the last configurations.
POLL_S = 0.2
# Candidates of each search that stay built for the comparison.
KEPT_OF_SEARCH = 3


def tune(
    problem: Problem,
    inputs: Inputs,
    backends: Sequence[Backend],
    budget: Budget,
    store: TrialStore,
    *,
    inputs_label: str = "made",
    storage: str | None = None,
    untuned: Candidate | None = None,
    deployed: Candidate | None = None,
    max_error: float = math.inf,
    objective: Objective = "median",
    seed: int = 0,
    on_event: Callable[[Event], None] = lambda event: None,
    build_times: BuildTimes = NO_BUILD_TIMES,
    clock: MeasuringClock | None = None,
    open_worker: Callable[[BenchmarkContext, Iterable[Backend]], tuple[Worker, tuple[str, ...]]] = open_worker,
) -> TuningResult:
    """Search the spaces of `backends` for `problem`, compare the best, and measure the winner again on fresh inputs.

    First the defaults of every backend are built and verified. Building is beyond the budget; verifying, and waiting
    for a busy machine, are part of it, up to a share each. The fastest default becomes the baseline of every timing. An
    interruption returns the trials so far, and names a winner only if the choice was finished by then. Running it again
    continues from the records.

    Args:
        problem: Problem of any op.
        inputs: Inputs that candidates are timed on.
        backends: Backends to search.
        budget: Time of verifying and measuring, or a number of trials.
        store: Takes the records, and has those of earlier runs.
        inputs_label: Origin of the inputs.
        storage: See `open_storage`; None for a journal beside the records.
        untuned: Candidate that serves where nothing was tuned, which has to be beaten; the baseline where None.
        deployed: Candidate of an earlier tuning; it takes part even where `backends` lacks its backend.
        max_error: The largest error against float64, as a share, that a winner may have beyond being verified.
        objective: The time that candidates are ranked by. The search goes by the median in any case.
        seed: Seed of the hard inputs, of the search, and of the order of samples.
        on_event: Called as things happen.
        build_times: Estimates of builds, and where they are kept.
        clock: Clock of the measuring; a new one where None.
        open_worker: Opens the worker.

    Raises:
        ResultsError: Results cannot be written.
    """
    clock = clock or MeasuringClock()
    store.prepare()
    loaded = store.load()
    opened, repaired = open_storage(storage, store.folder)
    with clock.paused():
        context = BenchmarkContext.of(problem, inputs, inputs_label, seed)
    known = [each for each in (untuned, deployed) if each is not None]
    everyone = [*backends, *(each.backend for each in known)]
    worker, worker_notices = open_worker(context, everyone)
    notices = [*loaded.notices, *repaired, *worker_notices]
    run = _Tuning(context, worker, store, budget, clock, on_event, max_error, objective, notices, build_times)
    try:
        with closing(worker), ExitStack() as leases:
            run.build_defaults(backends, untuned, deployed, loaded.trials)
            if run.baseline is not None:
                summaries = summarize_studies(opened, problem)
                run.notices += summaries.notices
                for backend in run.able:
                    recorded = [trial for trial in loaded.trials if trial.backend == backend.name]
                    first = [
                        *(each.config for each in known if each.backend.name == backend.name),
                        *winners_on_nearest_machines(summaries.studies, backend.name, context.machine),
                        *winners_on_similar_problems(loaded.trials, backend, problem, context.machine),
                    ]
                    beside, shared = run.baseline.candidate, storage is not None
                    search = Search(backend, context, beside, recorded, opened, store, max_error, shared, first)
                    leases.callback(search.close)
                    run.searches.append(search)
                run.search()
                run.note_unmeasured(loaded.trials)
                run.compare()
                if run.comparison is not None and storage is not None:
                    publish(run.comparison, context, opened)
    except KeyboardInterrupt:  # while the worker is closed, too
        run.interrupted = True
    return run.result()


class _Tuning:
    """State of a tuning."""

    def __init__(
        self,
        context: BenchmarkContext,
        worker: Worker,
        store: TrialStore,
        budget: Budget,
        clock: MeasuringClock,
        on_event: Callable[[Event], None],
        max_error: float,
        objective: Objective,
        notices: list[str],
        build_times: BuildTimes,
    ) -> None:
        self.baseline: Baseline | None = None
        self.searches: list[Search] = []
        self.comparison: Comparison | None = None
        self.interrupted = False
        self._context = context
        self._worker = worker
        self._store = store
        self._clock = clock
        self._on_event = on_event
        self._max_error = max_error
        self._objective: Objective = objective
        self.notices = notices
        self._failed: list[Trial] = []
        self._budget = budget
        self._build_times = build_times
        self._tied: set[str] = set()
        self._built = BuiltDefaults()
        self._kept: set[Candidate] = set()
        self._untuned: Candidate | None = None
        self._deployed: Candidate | None = None
        self._disturbance: str | None = None
        self._scheduler = Scheduler(self.searches, budget, clock, self._skip)
        limit_s = MAX_WAIT_S if budget.seconds is None else MAX_WAIT_SHARE * budget.seconds
        self._wait = QuietWait(limit_s, clock, worker.disturbance, self._on_wait, counts=budget.seconds is not None)

    def build_defaults(
        self,
        backends: Sequence[Backend],
        untuned: Candidate | None,
        deployed: Candidate | None,
        recorded: Sequence[Trial],
    ) -> None:
        """Build and verify the defaults of every backend, choose the baseline, and time the reference beside it."""
        known = [each for each in (untuned, deployed) if each is not None]
        seconds = self._budget.seconds
        builder = DefaultsBuilder(self._worker, self._clock, self._build_times, seconds, self._on_build)
        self._built = built = builder.build(self._context.problem, backends, known)
        for candidate, evaluation in built.failed.items():
            self._fail(candidate, evaluation, recorded)
        if not built.able:
            return
        with self._clock.paused():  # now that its process waits for orders, the worker disturbs nothing
            _ = self._context.roofline
        fastest = min(built.defaults, key=lambda candidate: built.evaluations[candidate].call_ms)
        baseline = recorded_baseline(self._context, built.defaults, recorded) or fastest
        self._untuned = untuned if untuned in built.evaluations else baseline
        self._deployed = deployed if deployed in built.evaluations else None
        self._on_build(f"timing {reference_candidate(self._context.problem).label}")
        deadline = self._clock.now() + min(REFERENCE_S, self._scheduler.at(REFERENCE_SHARE))
        calls = built.evaluations[baseline].calls
        self.baseline, missing = time_reference(
            self._context.problem, self._worker, baseline, calls, self._clock, deadline, self._wait
        )
        if missing is not None:
            self.notices.append(f"speed-ups in the search refer to {baseline.label}: {missing}")

    @property
    def able(self) -> tuple[Backend, ...]:
        """Backends whose defaults passed."""
        return self._built.able

    def _fail(self, candidate: Candidate, evaluation: Evaluation, recorded: Sequence[Trial]) -> None:
        """Record why a backend takes no part, unless that is recorded."""
        trial = trial_of(self._context, "search", candidate, time.time(), 0.0, evaluation)
        if not any((each.identity, each.reason) == (trial.identity, trial.reason) for each in recorded):
            self._store.append(trial)
        self._failed.append(trial)

    def search(self) -> None:
        """Try one configuration after the other until time, trials or configurations are used up."""
        assert self._untuned is not None
        by_name = {search.backend.name: search for search in self.searches}
        if self._untuned.backend.name not in by_name:
            self._store.append(self._evaluate(self._untuned, None, math.inf))
        while (search := self._scheduler.next_search()) is not None:
            candidate = search.ask(self._scheduler.time_for(search))
            if candidate is None:
                self._wait_for_others(search)
                continue
            self._scheduler.waiting.clear()
            self._emit("started", candidate.label)
            deadline = self._clock.now() + self._scheduler.time_for(search) / MIN_TRIALS
            trial = self._evaluate(candidate, search, deadline)
            self._store.append(trial)
            search.tell(trial)
            self._scheduler.new_trials += 1
            self._release(candidate)
            self._emit("finished", candidate.label, trial=trial)

    def note_unmeasured(self, recorded: Sequence[Trial]) -> None:
        """Record that no configuration of a backend was tried, where that is so."""
        unrepeated = [search.backend.name for search in self.searches if not search.trials and search.was_timed]
        if unrepeated:
            self.notices.append(
                f"{', '.join(unrepeated)}: the earlier trials were disturbed or count only for less exact winners, and"
                " there was no time left to repeat them; give it a larger budget"
            )
        for search in self.searches:
            if not search.trials and not search.was_timed:
                reason = "it was built and verified, and there was no time left to measure it; give it a larger budget"
                defaults = search.candidate(search.backend.space.defaults)
                self._fail(defaults, Evaluation("rejected", reason), recorded)

    def _evaluate(self, candidate: Candidate, search: Search | None, deadline: float) -> Trial:
        """Verify `candidate`, and time it beside the baseline for as long as it is promising."""
        assert self.baseline is not None
        best = None if search is None else search.best
        started_at, begun = time.time(), self._clock.now()

        def trial(evaluation: Evaluation, measurement: Measurement | None = None, pruned: str | None = None) -> Trial:
            duration_s = self._clock.now() - begun
            return trial_of(self._context, "search", candidate, started_at, duration_s, evaluation, measurement, pruned)

        evaluation = self._worker.prepare(candidate)
        if evaluation.state != "ok":
            return trial(evaluation)
        blocks: list[Block] = []
        pruned: str | None = None
        try:
            while True:
                before = self._clock.now()
                blocks += self._worker.take_round([candidate], self.baseline.candidate, len(blocks))
                late = 2 * self._clock.now() - before > deadline
                if blocks[-1].disturbed:
                    self._disturbance = blocks[-1].disturbed
                    self._wait()
                measurement = self.baseline.measurement(evaluation, blocks, None)
                pruned = should_prune(measurement, best)
                if pruned or late or has_converged(measurement, best):
                    break
            measurement = replace(measurement, peak_bytes=self._worker.peak_bytes(candidate))
        except CandidateFailedError as failure:
            if failure.candidate != candidate:
                raise RejectedError(f"the baseline cannot be timed any more: {failure}") from failure
            return trial(replace(evaluation, state="crashed", reason=failure.reason, verdict=None))
        return trial(evaluation, measurement, pruned)

    def _release(self, candidate: Candidate) -> None:
        """Keep built the candidates of the comparison: the defaults and the best few of each search."""
        best = {
            search.candidate(trial.config) for search in self.searches for trial in search.eligible[:KEPT_OF_SEARCH]
        }
        built = self._kept | {candidate}
        self._kept = built & best
        needed = {*self._built.evaluations, reference_candidate(self._context.problem)}
        self._worker.release(built - best - needed)

    def _wait_for_others(self, search: Search) -> None:
        """Let other searches go first, or a moment pass, while others try the last configurations of this one."""
        if not search.waiting:
            self._scheduler.finish(search)
            return
        self._scheduler.waiting.add(search.backend.name)
        self._emit("waiting", f"{search.backend.name}: others try the rest")
        if all(each.backend.name in self._scheduler.waiting for each in self._scheduler.running):
            time.sleep(POLL_S)
            self._scheduler.waiting.clear()

    def compare(self) -> None:
        """Compare the best of the search, and measure the winner again on fresh inputs."""
        assert self.baseline is not None
        assert self._untuned is not None
        until, end = self._scheduler.comparison_ends(1 - HOLDOUT_SHARE), self._scheduler.comparison_ends(1.0)
        if not fresh_processes(self._worker.start_s, (), end - until):
            until = end  # there will be no hold-out
        kept = [each for each in (self._untuned, self._deployed) if each is not None]
        selected = finalists(self.searches, kept, until - self._clock.now(), self._objective)
        self.notices += selected.notices
        baseline = self.baseline.candidate
        comparer = Comparer(
            self._context, self._worker, self._store, self._clock, self._wait, objective=self._objective
        )
        processes = fresh_processes(self._worker.start_s, selected.prepare_s.values(), until - self._clock.now())
        compared = replace(comparer, on_round=lambda number: self._on_round("comparison", number)).compare(
            selected.candidates,
            until,
            baseline=baseline,
            untuned=self._untuned,
            # A single fresh process would only repeat the builds.
            processes=processes if processes > 1 else 0,
        )
        compared = exact_enough(compared, self._max_error)
        self._tied |= {each.trial.label for each in compared.ties}
        if compared.winner is None:
            self.comparison = compared
            self.notices += compared.notices
            return
        held = hold_out(
            compared,
            replace(comparer, on_round=lambda number: self._on_round("hold-out", number)),
            self.searches,
            kept,
            baseline,
            self._scheduler.comparison_ends(1.0),
        )
        self.notices += compared.notices
        if isinstance(held, str) or held.winner is None:
            reason = held if isinstance(held, str) else "; ".join(held.notices)
            self.notices.append(f"no hold-out comparison: the numbers are those of the one that chose: {reason}")
            self.comparison = compared
            return
        self.comparison = exact_enough(held, self._max_error)
        self.notices += held.notices
        self._tied |= {each.trial.label for each in held.ties}

    def result(self) -> TuningResult:
        """Return the result."""
        trials = [trial for search in self.searches for trial in search.trials]
        chosen = None if self.comparison is None else self.comparison.winner
        cleanly = any(trial.state in ("ok", "pruned") for trial in trials)
        return TuningResult(
            problem=self._context.problem,
            inputs_label=self._context.inputs_label,
            objective=self._objective,
            trials=tuple(trials),
            failed=tuple(self._failed),
            new=self._scheduler.new_trials,
            winner=None if chosen is None else chosen.trial,
            comparison=self.comparison,
            tied=frozenset(self._tied),
            exhausted=tuple(search.backend.name for search in self.searches if search.left == 0),
            notices=tuple(dict.fromkeys(self.notices)),
            interrupted=self.interrupted,
            elapsed_s=self._clock.elapsed_s(),
            too_busy=None if cleanly else self._disturbance,
            measuring_s=self._clock.now() - (self._wait.waited_s if self._budget.seconds is not None else 0.0),
            waited_s=self._wait.waited_s,
        )

    def _skip(self, backend: str, message: str) -> None:
        self.notices.append(message)
        self._emit("skipped", backend, message=message)

    def _on_build(self, line: str) -> None:
        self._emit("building", line)

    def _on_wait(self, reason: str) -> None:
        self._disturbance = reason
        message = f"the machine is busy ({reason}): waiting for up to {max(0.0, self._wait.left_s):.0f} s"
        self._emit("waiting", message, message=message)

    def _on_round(self, name: str, number: int) -> None:
        self._emit("round", f"{name}, round {number}")

    def _emit(self, kind: EventKind, label: str, trial: Trial | None = None, message: str | None = None) -> None:
        leaders = [search.eligible[0] for search in self.searches if search.eligible]
        best = min(leaders, key=upper_end, default=None)
        scheduler = self._scheduler
        event = Event(kind, label, self._clock.elapsed_s(), scheduler.left_s, scheduler.done, trial, best, message)
        self._on_event(event)
