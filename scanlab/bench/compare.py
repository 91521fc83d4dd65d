"""Comparison of candidates in interleaved rounds, in one worker process or in several fresh ones; at several sizes too.

Two runs of one program differ by more than two rounds of one run do (where memory lies, which CPU, which clock), so
that a comparison in several processes tells more. The blocks of all candidates become records.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from scanlab.bench.clock import MeasuringClock, QuietWait
from scanlab.bench.context import BenchmarkContext, Candidate
from scanlab.bench.objective import Objective
from scanlab.bench.process_worker import open_worker
from scanlab.bench.ranking import (
    MIN_PROCESSES,
    Comparison,
    Place,
    RankedCandidate,
    choose,
    decided,
    noise_floor,
    places,
)
from scanlab.bench.records import Phase, Trial
from scanlab.bench.samples import Block, Measurement, clean
from scanlab.bench.store import TrialStore
from scanlab.bench.trials import Baseline, reference_candidate, trial_of
from scanlab.bench.worker import CandidateFailedError, Evaluation, Worker
from scanlab.contract import registry
from scanlab.contract.base import Problem

MIN_ROUNDS = 8
MAX_ROUNDS = 60
# The reference takes at most this share of the time, but is timed once at least.
REFERENCE_SHARE = 0.3
# Each is a comparison of its own on drawn inputs, because no model produces every length.
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
# Calls that a candidate needs in a comparison at least: it is verified, calibrated, and timed in a few rounds.
MIN_CALLS = 16


@dataclass
class _Series:
    """The blocks of one candidate so far; it takes part in every n-th round until it fails."""

    candidate: Candidate
    evaluation: Evaluation
    every: int = 1
    blocks: list[Block] = field(default_factory=list)
    peak_bytes: int | None = None

    @property
    def alive(self) -> bool:
        return self.evaluation.state == "ok"

    def fail(self, reason: str) -> None:
        self.evaluation = replace(self.evaluation, state="crashed", reason=reason, verdict=None)


@dataclass
class Comparer:
    """Context of comparisons that share all but their candidates.

    Attributes:
        context: Problem, inputs and machine of the trials.
        worker: Prepares and times the candidates.
        store: Takes the records.
        clock: Clock of the deadlines.
        wait_for_quiet: Called after a disturbed round.
        on_round: Called with the number of rounds so far.
        objective: The time that candidates are ranked by.
    """

    context: BenchmarkContext
    worker: Worker
    store: TrialStore
    clock: MeasuringClock
    wait_for_quiet: QuietWait
    on_round: Callable[[int], None] = lambda number: None
    objective: Objective = "median"

    def compare(
        self,
        candidates: Sequence[Candidate],
        deadline: float,
        *,
        phase: Phase = "comparison",
        baseline: Candidate | None = None,
        untuned: Candidate | None = None,
        processes: int = 0,
    ) -> Comparison:
        """Time `candidates` in interleaved rounds until they are distinguishable, or until `deadline`.

        Every candidate is verified first and takes part in at least one round. Those that take long are timed in fewer
        rounds, always beside the baseline. The reference is timed a few times for the speed-ups. One trial for
        each candidate is appended to the store.

        Args:
            candidates: Candidates to compare.
            deadline: When to stop, by the clock.
            phase: Phase that the trials record.
            baseline: The candidate that everything is timed beside; the fastest candidate, as calibrated, where None.
            untuned: The candidate that serves where nothing was tuned; it wins unless it is shown to be slower.
            processes: Number of fresh processes that take it in turn, fewer where they take long to start; 0 for the
                worker as it is.
        """
        run = _Run(self, candidates, baseline)
        if processes and not self.worker.isolated:
            processes = 0
        done, left = 0, max(1, processes)
        while left and not (done >= MIN_PROCESSES and run.is_decided):
            begun = self.clock.now()
            if processes:
                self.worker.restart()
            left = run.take_rounds(begun, deadline, left, may_stop_early=processes < 2)
            done += 1
        return self._outcome(run, phase, untuned, done)

    def _outcome(self, run: _Run, phase: Phase, untuned: Candidate | None, processes: int) -> Comparison:
        trials = [self._trial(run, each, phase) for each in run.series]
        for trial in trials:
            self.store.append(trial)
        timed = [(series, trial) for series, trial in zip(run.series, trials, strict=True) if trial.state == "ok"]
        floor = run.noise_floor
        found = places([series.blocks for series, _ in timed], floor, self.objective)
        ranked = [
            _ranked(series.candidate, trial, place, self.context, untuned)
            for (series, trial), place in zip(timed, found, strict=True)
        ]
        return Comparison(
            ranking=tuple(ranked),
            winner=None,
            dropped=tuple(trial for trial in trials if trial.state != "ok"),
            noise_floor=floor,
            rounds=run.rounds,
            clean_rounds=run.clean_rounds,
            processes=processes,
            notices=run.notices,
            objective=self.objective,
        ).led_by(choose(ranked, floor, processes, self.objective))

    def _trial(self, run: _Run, series: _Series, phase: Phase) -> Trial:
        evaluation, measurement = series.evaluation, None
        if series.alive and series.blocks and run.baseline is not None:
            measurement = run.baseline.measurement(evaluation, series.blocks, series.peak_bytes)
        elif series.alive:
            evaluation = replace(evaluation, state="rejected", reason="there was no round of it", verdict=None)
        times = run.started_at, self.clock.now() - run.begun
        return trial_of(self.context, phase, series.candidate, *times, evaluation, measurement)


class _Run:
    """The rounds of one comparison, over all of its processes."""

    def __init__(self, comparer: Comparer, candidates: Sequence[Candidate], baseline: Candidate | None) -> None:
        self._comparer = comparer
        self._worker = comparer.worker
        self._clock = comparer.clock
        self._baseline = baseline
        self._baseline_calls = 1
        self.started_at, self.begun = time.time(), comparer.clock.now()
        self.series = [_Series(each, Evaluation("ok")) for each in dict.fromkeys(candidates)]
        self._reference = _Series(reference_candidate(comparer.context.problem), Evaluation("ok"))
        self._control: _Series | None = None
        self._failure: str | None = None
        self.rounds = 0
        self.clean_rounds = 0
        self._processes = 0
        self._last_disturbance: str | None = None

    def take_rounds(self, begun: float, deadline: float, processes: int, may_stop_early: bool) -> int:
        """Prepare everything in the worker's process, and take its share of the rounds.

        Args:
            begun: When the process was started.
            deadline: When all processes together have to stop.
            processes: Number of processes that are left, with this one.
            may_stop_early: Whether this process may decide.

        Returns:
            The number of further processes that fit, each spending no more than half of its time on starting.
        """
        self._prepare()
        if self._baseline is None:
            return 0
        beside = self._worker.prepare(self._baseline)
        if beside.state != "ok":
            self._failure = f"the baseline {self._baseline.label} {beside.state}: {beside.reason}"
            return 0
        now = self._clock.now()
        start_s, left_s = now - begun, max(0.0, deadline - now)
        further = min(processes - 1, int(left_s / max(2 * start_s, 1e-9)))
        most = max(MIN_ROUNDS, MAX_ROUNDS // (self._processes + 1 + further))
        self._processes += 1
        deadline = now + (left_s - further * start_s) / (1 + further)
        self._baseline_calls = beside.calls
        self._set_pace(beside, deadline, most)
        number, clean_rounds, slowness = 0, 0, 1.0
        reference_s = REFERENCE_SHARE * (deadline - self._clock.now())
        while clean_rounds < most and number < 2 * most:
            due = [each for each in self.series if each.alive and number % each.every == 0]
            if not due:
                break
            control = self._control if self._control is not None and self._control.alive else None
            extra = [control] if control is not None else []
            if self._reference.alive and (number == 0 or reference_s > self._reference.evaluation.block_s):
                extra.append(self._reference)
                reference_s -= self._reference.evaluation.block_s
            taking = [*due, *extra]
            expected_s = beside.block_s + sum(each.evaluation.block_s for each in taking)
            begun = self._clock.now()
            if number and begun + slowness * expected_s > deadline:
                break
            try:
                blocks = self._worker.take_round([each.candidate for each in taking], self._baseline, number)
            except CandidateFailedError as failure:
                self._disqualify(failure)
                if failure.candidate == self._baseline:
                    return 0
                continue
            slowness = max(1.0, (self._clock.now() - begun) / expected_s)
            for each, block in zip(taking, blocks, strict=True):
                each.blocks.append(block)
            number += 1
            self.rounds += 1
            self._comparer.on_round(self.rounds)
            if blocks[0].disturbed:
                self._last_disturbance = blocks[0].disturbed
                self._comparer.wait_for_quiet()
            else:
                clean_rounds += 1
                self.clean_rounds += 1
            if may_stop_early and clean_rounds >= MIN_ROUNDS and self.is_decided:
                break
        self._weigh()
        return further

    def _prepare(self) -> None:
        """Verify and calibrate the candidates; choose the baseline and the A/A control the first time."""
        for each in (*self.series, self._reference):
            if each.alive:
                evaluation = self._worker.prepare(each.candidate)
                each.evaluation = evaluation
        ready = [each for each in self.series if each.alive]
        if not ready:
            return
        fastest = min(ready, key=lambda each: each.evaluation.call_ms)
        self._baseline = self._baseline or fastest.candidate
        if self._control is None:
            self._control = _Series(fastest.candidate, fastest.evaluation)
        if self._reference.candidate == self._baseline:
            self._reference.fail("speed-ups refer to the baseline")

    def _set_pace(self, beside: Evaluation, deadline: float, most: int) -> None:
        """Let candidates that take much longer than the others take part in fewer rounds, but in enough of them."""
        running = [each for each in self.series if each.alive]
        if not running:
            return
        usual_s = max(beside.block_s, statistics.median(each.evaluation.block_s for each in running))
        for each in running:
            each.every = max(1, round(each.evaluation.block_s / (4 * usual_s)))
        round_s = beside.block_s + sum(each.evaluation.block_s / each.every for each in running)
        rounds = min(most, max(0.0, deadline - self._clock.now()) / round_s)
        for each in running:
            each.every = max(1, min(each.every, int(rounds / MIN_ROUNDS)))

    def _disqualify(self, failure: CandidateFailedError) -> None:
        for each in (*self.series, self._reference, *([self._control] if self._control else [])):
            if each.candidate == failure.candidate:
                each.fail(failure.reason)
        if failure.candidate == self._baseline:
            self._failure = f"the baseline {failure}"

    def _weigh(self) -> None:
        """Measure the memory of the candidates, outside of any round."""
        for each in self.series:
            if each.alive and each.blocks and each.peak_bytes is None:
                try:
                    each.peak_bytes = self._worker.peak_bytes(each.candidate)
                except CandidateFailedError as failure:
                    each.fail(failure.reason)

    @property
    def is_decided(self) -> bool:
        blocks = [each.blocks for each in self.series if each.alive]
        return bool(blocks) and decided(blocks, self.noise_floor, self._comparer.objective)

    @property
    def noise_floor(self) -> float:
        if self._control is None:
            return math.inf
        own = next(each for each in self.series if each.candidate == self._control.candidate)
        return noise_floor(self._control.blocks, own.blocks, self._comparer.objective)

    @property
    def baseline(self) -> Baseline | None:
        if self._baseline is None:
            return None
        if self._reference.alive and clean(self._reference.blocks):
            blocks = tuple(self._reference.blocks)
            return Baseline(self._baseline, self._baseline_calls, self._reference.candidate.label, blocks)
        return Baseline(self._baseline, self._baseline_calls)

    @property
    def notices(self) -> tuple[str, ...]:
        notices = [] if self._failure is None else [self._failure]
        if self._last_disturbance is not None:
            notices.append(
                f"{self.rounds - self.clean_rounds} of {self.rounds} rounds were disturbed ({self._last_disturbance})"
                " and do not count"
            )
        roofline = self._comparer.context.roofline
        if self.clean_rounds and roofline is not None and roofline.disturbed is not None:
            notices.append(
                "the limits of arithmetic and memory traffic were measured beside other work: the share of them that"
                " is reached is unknown"
            )
        if self.rounds and self.clean_rounds < MIN_ROUNDS:
            cure = "try again when it is quiet" if 2 * self.clean_rounds < self.rounds else "give it more time"
            notices.append(f"{self.clean_rounds} clean rounds, fewer than {MIN_ROUNDS}: {cure}")
        return tuple(notices)


def _ranked(
    candidate: Candidate, trial: Trial, place: Place, context: BenchmarkContext, untuned: Candidate | None
) -> RankedCandidate:
    assert trial.measurement is not None
    attainable_ms = context.attainable_ms(candidate)
    return RankedCandidate(
        trial=trial,
        rank=candidate.backend.rank,
        num_nondefault=candidate.backend.space.num_nondefault(trial.config),
        place=place,
        attainable_share=None if attainable_ms is None else attainable_ms / trial.measurement.median_ms,
        is_untuned=candidate == untuned,
    )


def sweep_lengths(
    problem: Problem,
    candidates: Sequence[Candidate],
    store: TrialStore,
    clock: MeasuringClock,
    deadline: float,
    seed: int = 0,
    lengths: Sequence[int] = LENGTHS,
    on_length: Callable[[int], None] = lambda length: None,
) -> tuple[Trial, ...]:
    """Time `candidates` at each length of `problem` in turn, shortest first, until `deadline` of `clock`.

    A candidate whose next length is not expected to fit, or whose configuration is not legal for it, stops there: a
    line in the plot ends where there was no time, it is never guessed. The fastest are kept longest. Every trial is
    verified, and appended to `store` in the phase "lengths".
    """
    taken: list[Trial] = []
    call_s: dict[Candidate, float] = {}
    reference_s = 0.0
    running = list(candidates)
    worker = None
    try:
        for index, length in enumerate(lengths):
            longer = problem.replace(**{problem.swept: length})
            growth = 1.0 if index == 0 else length / lengths[index - 1]
            left_s = deadline - clock.now() - growth * reference_s
            fitting, needed_s = [], 0.0
            for each in sorted(running, key=lambda each: call_s.get(each, 0.0)):
                needed_s += MIN_CALLS * growth * call_s.get(each, 0.0)
                if each.backend.space.forbids(each.config, longer) is None and needed_s <= left_s:
                    fitting.append(each)
            running = fitting
            if not running or left_s <= 0:
                break
            on_length(length)
            started = clock.now()
            context = BenchmarkContext.of(
                longer, registry.op(longer.op).make_inputs(longer, seed), f"drawn, seed {seed}", seed
            )
            reference_s = clock.now() - started
            if worker is None:
                worker, _ = open_worker(context, [each.backend for each in running])
            else:
                worker.load(context)
            share_s = (deadline - clock.now()) / (len(lengths) - index)
            comparer = Comparer(context, worker, store, clock, QuietWait(share_s, clock, worker.disturbance))
            trials = comparer.compare(running, clock.now() + share_s, phase="lengths").trials
            took_s = {each.label: _call_s(each.measurement) for each in trials if each.measurement is not None}
            call_s = {each: took_s[each.label] for each in running if each.label in took_s}
            running = list(call_s)
            taken.extend(trials)
    finally:
        if worker is not None:
            worker.close()
    return tuple(taken)


def _call_s(measurement: Measurement) -> float:
    """Return the duration of a call, by all blocks, as an estimate for the next length."""
    return statistics.median(sample for block in measurement.blocks for sample in block.candidate_ns) / 1e9
