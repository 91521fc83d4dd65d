"""From a problem to a winner: every backend proved and searched within a budget, the best raced and held out."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from scanlab.bench.compare import race
from scanlab.bench.deadline import OutOfTimeError, time_limit
from scanlab.bench.pace import Pace, anchor_and_pace
from scanlab.bench.prove import Failure, Proven, Setting
from scanlab.bench.ranking import Race
from scanlab.bench.records import Trial, label_of, log_ratio
from scanlab.bench.store import TrialStore
from scanlab.bench.worker import Entrant
from scanlab.contract import registry
from scanlab.contract.backend import Backend
from scanlab.contract.problem import ScanInputs, ScanProblem
from scanlab.contract.space import Config
from scanlab.tuning.attempt import attempt
from scanlab.tuning.budget import Budget, Clock
from scanlab.tuning.fleet.overview import publish, winners_on_nearest_machines
from scanlab.tuning.fleet.storage import open_storage
from scanlab.tuning.fleet.study_summary import summarize_studies
from scanlab.tuning.search import Search
from scanlab.tuning.selection import finalists, fresh_processes, hold_out
from scanlab.tuning.tuned import Event, EventKind, Tuned
from scanlab.tuning.warm_start import winners_on_similar_problems

__all__ = ["Event", "Tuned", "tune"]

# The parts of the budget that are kept for the race and for the hold-out run.
RACE_SHARE = 0.18
HOLDOUT_SHARE = 0.14
# Each of them after a search that was given a number of trials and no time.
RACE_S = 30.0
# Every backend gets its default and a few more before the promising ones get the rest.
FEWEST_TRIALS = 4
# The share of what is left that the first attempts of all backends may take together, compiling included, and how
# often one may come back for more after it was cut off.
UNKNOWN_SHARE = 0.4
# What is not known yet is taken to be so fast, as a share of the best: what was cut off waits its turn by that.
UNKNOWN_PROMISE = 0.1
# Where the anchor is slow, what is on the rungs below its pacer may be so too: an attempt takes so many calls.
CALLS_OF_ATTEMPT = 7
MOST_CUT_OFFS = 1
# How often it is looked whether other processes have done, or left, what they are trying.
POLL_S = 0.2
# The loop's steps are so short that on several threads it mostly waits for the slowest of them: a neighbour on
# one CPU slows it manyfold, and every ratio to it would tell of the neighbour. One thread is a steady yardstick.
STEADY: Config = {"threads": 1}
# The share of the budget by which it is known what everything is timed beside.
PACE_SHARE = 0.4
SEARCH_SHARE = 1 - RACE_SHARE - HOLDOUT_SHARE
# What still runs at these shares of the budget is cut off, so that the promise is kept: an attempt of the
# search, which may eat into the time for the race, and the finals.
CUT_OFF_ATTEMPT = 0.85
CUT_OFF = 1.05


def tune(
    problem: ScanProblem,
    inputs: tuple[ScanInputs, ...],
    backends: Sequence[Backend],
    budget: Budget,
    results: TrialStore,
    *,
    inputs_label: str = "made",
    storage: str | None = None,
    anchor: Entrant | None = None,
    max_error: float = math.inf,
    seed: int = 0,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Tuned:
    """Search the spaces of `backends` for `problem`, race the best, and hold the winner's numbers out.

    storage    see `open_storage`; None for a journal beside the records
    anchor     what everything is timed beside; the reference loop on one thread where None
    max_error  the largest error against float64, as a share, that a winner may have beyond being proved
    Returns what there is when a person interrupts it. Running it again takes up what is recorded and measures
    only what is not. Raises ResultsError where results cannot be written, RejectedError where the anchor
    cannot run. An anchor that is too slow for the budget is replaced, and that is said.
    """
    clock = Clock(time.monotonic(), budget)
    results.prepare()
    loaded = results.load()
    opened, repaired = open_storage(storage, results.folder)
    shared = storage is not None
    searched = summarize_studies(opened, problem.key)
    setting = Setting.of(problem, inputs, inputs_label, seed)
    wanted = anchor or Entrant(registry.get("reference"), STEADY)
    yardstick, pace, too_slow = anchor_and_pace(wanted, backends, setting, clock.at(PACE_SHARE))
    run = _Run(
        setting, yardstick, pace, results, clock, on_event, [*loaded.notices, *repaired, *searched.notices, *too_slow]
    )
    if pace is not None:
        run.slow_anchor_s = pace.anchor_s
    elif too_slow and budget.seconds is not None:
        run.slow_anchor_s = PACE_SHARE * budget.seconds
    for backend in backends:
        recorded = [trial for trial in loaded.trials if trial.backend == backend.name]
        refusal = backend.unavailable() or backend.rejects(problem)
        if refusal is None:
            elsewhere = winners_on_nearest_machines(searched.studies, backend.name, setting.machine)
            hints = (*elsewhere, *winners_on_similar_problems(loaded.trials, backend, problem, setting.machine))
            search = Search(backend, setting, yardstick, recorded, opened, results, max_error, shared, hints)
            run.searches.append(search)
        else:
            run.refuse(backend, refusal, recorded)
    outcome: Race | None = None
    try:
        run.search()
        outcome = run.finals()
        if outcome is not None and shared:
            publish(outcome, setting, opened)
    except KeyboardInterrupt:
        run.interrupted = True
    finally:
        for search in run.searches:
            search.close()
    return Tuned(
        trials=tuple(trial for search in run.searches for trial in search.trials),
        new=run.new,
        fastest=run.best,
        race=outcome,
        tied=frozenset(run.tied),
        exhausted=tuple(search.backend.name for search in run.searches if search.left == 0),
        notices=tuple(run.notices),
        interrupted=run.interrupted,
        elapsed_s=time.monotonic() - clock.started,
    )


@dataclass
class _Run:
    """One tuning under way."""

    setting: Setting
    anchor: Proven
    pace: Pace | None
    results: TrialStore
    clock: Clock
    on_event: Callable[[Event], None]
    notices: list[str]
    searches: list[Search] = field(default_factory=list)
    finished: set[str] = field(default_factory=set)
    waiting: set[str] = field(default_factory=set)
    cut_off: Counter[str] = field(default_factory=Counter)
    wasted_s: dict[str, float] = field(default_factory=dict)
    tied: set[str] = field(default_factory=set)
    slow_anchor_s: float = 0.0
    new: int = 0
    interrupted: bool = False

    def refuse(self, backend: Backend, refusal: str, recorded: Sequence[Trial]) -> None:
        """Say why a backend takes no part, and record it the first time."""
        self.notices.append(f"{backend.name} takes no part: {refusal}")
        failure = Failure("rejected", refusal)
        trial = self.setting.trial("search", backend, backend.space.defaults, time.time(), failure)
        if all((known.identity, known.reason) != (trial.identity, refusal) for known in recorded):
            self.results.append(trial)

    def search(self) -> None:
        """Try configurations until the time for it is over or nothing is left to try."""
        anchor_arm = self._beside.arm(self.setting)
        rng = random.Random(self.setting.seed)
        while (search := self._most_promising()) is not None:
            asked = search.ask(self._time_for(search))
            self._condemn(search)
            if asked is None:
                if search.waiting:
                    self._wait(search)
                else:
                    self.finished.add(search.backend.name)
                continue
            self.waiting.clear()
            label = label_of(search.backend.name, asked)
            self._emit("started", label)
            best = search.best.measurement if search.best else None
            begun = time.monotonic()
            try:
                with time_limit(self._limit(search)):
                    trial, scan = attempt(
                        search.backend,
                        asked,
                        self.setting,
                        self.anchor,
                        anchor_arm,
                        best,
                        rng,
                        deadline=time.monotonic() + self._time_for(search) / FEWEST_TRIALS,
                        pace=self.pace,
                    )
            except (OutOfTimeError, KeyboardInterrupt) as stopped:
                search.give_back(asked)
                if isinstance(stopped, KeyboardInterrupt):
                    raise
                self.cut_off[search.backend.name] += 1
                self.wasted_s[search.backend.name] = time.monotonic() - begun
                if self.cut_off[search.backend.name] > MOST_CUT_OFFS or time.monotonic() > self.clock.at(SEARCH_SHARE):
                    self._skip(search, f"{label} was cut off: the budget does not hold it; give it more")
                continue
            self.results.append(trial)
            search.tell(trial, scan)
            self.new += 1
            self._emit("finished", label, trial=trial)

    def _condemn(self, search: Search) -> None:
        """Record the configurations that process after process died of."""
        for config in search.lethal:
            failure = Failure("crashed", "process after process died while trying this configuration")
            trial = self.setting.trial("search", search.backend, config, time.time(), failure)
            self.results.append(trial)
            search.learn(trial)

    def _wait(self, search: Search) -> None:
        """Let other searches go first, or a moment pass, while other processes try what is left of this one."""
        self.waiting.add(search.backend.name)
        self._emit("waiting", f"{search.backend.name}: others try what is left")
        if all(each.backend.name in self.waiting for each in self._running()):
            time.sleep(POLL_S)
            self.waiting.clear()

    def finals(self) -> Race | None:
        """The race that chooses, and the hold-out run that its winner's numbers come from."""
        chosen, too_slow = finalists(self.searches, self._race_ends(1 - HOLDOUT_SHARE) - time.monotonic())
        self.notices += too_slow
        if not chosen:
            return None
        raced: Race | None = None
        try:
            with time_limit(self.clock.at(CUT_OFF)):
                until = self._race_ends(1 - HOLDOUT_SHARE)
                processes = fresh_processes([one.build_s for one in chosen], until - time.monotonic())
                raced = race(
                    [one.entrant for one in chosen],
                    self.anchor,
                    self.setting,
                    self.results,
                    until,
                    # A single fresh process would only cost the scans that are built here already.
                    processes=processes if processes > 1 else 0,
                    on_round=partial(self._on_round, "race"),
                    pace=self.pace,
                )
                self.tied |= {standing.trial.label for standing in raced.ties}
                held = self._hold_out(raced)
                self.tied |= {standing.trial.label for standing in held.ties}
                return held
        except OutOfTimeError:
            self.notices.append("the finals were cut off: building the finalists again took the rest of the budget")
        except KeyboardInterrupt:
            self.interrupted = True
        return raced

    def _hold_out(self, raced: Race) -> Race:
        held = hold_out(
            raced,
            {search.backend.name: search for search in self.searches},
            self.anchor,
            self.pace,
            self.setting,
            self.results,
            self._race_ends(1.0),
            partial(self._on_round, "hold-out"),
        )
        if isinstance(held, str) or held.winner is None:
            reason = held if isinstance(held, str) else "; ".join(held.notices)
            self.notices.append(f"no hold-out run, so that the numbers are those of the race that chose: {reason}")
            return raced
        self.notices += raced.notices
        return held

    def _race_ends(self, share: float) -> float:
        return time.monotonic() + RACE_S if self.clock.budget.seconds is None else self.clock.at(share)

    @property
    def best(self) -> Trial | None:
        """The fastest trial of the search so far."""
        return min((search.best for search in self.searches if search.best), key=log_ratio, default=None)

    def _most_promising(self) -> Search | None:
        """Whose turn it is: defaults first, those of the highest rank, then a few of everybody's that has the time
        for a few, then shares of time by speed.
        """
        if self.clock.budget.trials is not None and self.new >= self.clock.budget.trials:
            return None
        now, until = time.monotonic(), self.clock.at(SEARCH_SHARE)
        for search in self._running():
            if search.left == 0:
                self.finished.add(search.backend.name)
            elif now + self._expected_s(search) > until:
                takes = f" (about {search.expected_s:.1f} s each)" if search.expected_s else ""
                left = "other" if search.left is None else f"its other {search.left}"
                was = "was cut off, and there is" if self.cut_off[search.backend.name] else "there is"
                self._skip(search, f"{search.backend.name}: {was} no time left for {left} configurations{takes}")
        running = [each for each in self._running() if each.backend.name not in self.waiting] or self._running()
        for count in range(1, FEWEST_TRIALS + 1):
            # What was cut off comes back after everybody else has had a few.
            behind = [each for each in running if len(each.trials) < count and not self.cut_off[each.backend.name]]
            behind = [each for each in behind if FEWEST_TRIALS * self._expected_s(each) <= self._fair_s]
            if behind:
                return max(behind, key=lambda each: each.backend.rank)
        return min(running, key=self._dearness, default=None)

    def _dearness(self, search: Search) -> float:
        """The time it has had, what was cut off too, for each share of the time that it deserves."""
        had_s = search.spent_s + self.wasted_s.get(search.backend.name, 0.0)
        return (had_s or self._expected_s(search)) / self._promise(search)

    def _expected_s(self, search: Search) -> float:
        """What its next attempt will take; before the first as if it were as slow as a slow anchor."""
        if search.expected_s is not None:
            return search.expected_s
        return 0.0 if search.backend.name == self._beside.backend.name else CALLS_OF_ATTEMPT * self.slow_anchor_s

    def _limit(self, search: Search) -> float:
        """When an attempt is cut off: those of unknown backends may not take the time of the others."""
        known = search.expected_s is not None or search.backend.name == self._beside.backend.name
        if known or self.clock.budget.seconds is None or self._running() == [search]:
            return self.clock.at(CUT_OFF_ATTEMPT)
        now = time.monotonic()
        unknown = sum(each.expected_s is None and not self.cut_off[each.backend.name] for each in self._running())
        return now + (self.clock.at(SEARCH_SHARE) - now) * UNKNOWN_SHARE / max(1, unknown)

    def _promise(self, search: Search) -> float:
        """Its best speed as a share of the best of all, which is its share of the time too."""
        if search.best is None or self.best is None:
            return UNKNOWN_PROMISE
        return math.exp(log_ratio(self.best) - log_ratio(search.best))

    def _time_for(self, search: Search) -> float:
        """The time that this search may count on, when all that still run get alike; none where trials are too few."""
        running = len(self._running())
        if self.clock.budget.trials is not None:
            trials = (self.clock.budget.trials - self.new) / running
            if search.left is not None and search.left > max(trials, FEWEST_TRIALS):
                return 0.0
        return self._fair_s

    @property
    def _beside(self) -> Proven:
        """What everything is timed beside."""
        return self.anchor if self.pace is None else self.pace.pacer

    @property
    def _fair_s(self) -> float:
        """What is left of the time for the search, shared alike by all that still run."""
        return (self.clock.at(SEARCH_SHARE) - time.monotonic()) / len(self._running())

    def _running(self) -> list[Search]:
        return [search for search in self.searches if search.backend.name not in self.finished]

    def _skip(self, search: Search, message: str) -> None:
        self.finished.add(search.backend.name)
        self.notices.append(message)
        self._emit("skipped", search.backend.name, message=message)

    def _on_round(self, name: str, number: int) -> None:
        self._emit("round", f"{name}, round {number}")

    def _emit(
        self,
        kind: EventKind,
        label: str,
        trial: Trial | None = None,
        message: str | None = None,
    ) -> None:
        elapsed_s = time.monotonic() - self.clock.started
        budget = self.clock.budget
        by_time = 0.0 if budget.seconds is None else elapsed_s / budget.seconds
        by_trials = 0.0 if budget.trials is None else self.new / budget.trials
        done = min(1.0, max(by_time, by_trials))
        eta_s = elapsed_s * (1 - done) / done if done > 0 else math.inf
        if budget.seconds is not None:
            eta_s = min(eta_s, max(0.0, budget.seconds - elapsed_s))
        self.on_event(Event(kind, label, elapsed_s, eta_s, done, trial, self.best, message))
