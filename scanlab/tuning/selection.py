"""After the search: a race chooses, and a hold-out run on fresh inputs in fresh processes gives the numbers.

Whoever is chosen for having been fastest was lucky too: the numbers that chose it flatter it. The hold-out
run knows nothing of them, so that its numbers may be published and written into a profile.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from scanlab.bench.compare import race
from scanlab.bench.pace import Pace, measured_again
from scanlab.bench.prove import Proven, Setting
from scanlab.bench.ranking import Race
from scanlab.bench.records import Trial, error_of, log_ratio
from scanlab.bench.store import TrialStore
from scanlab.bench.worker import FEWEST_ROUNDS, Entrant, is_installed
from scanlab.contract.cpu import usable_threads
from scanlab.tuning.search import Search

# A search takes few blocks, so that its leader may have been lucky: what it saw within this of the leader races
# too, up to so many entrants.
NEAR = math.log(1.15)
MOST_FINALISTS = 12


# What a fresh process takes on an idle machine before it builds anything: loading torch and the inputs.
START_S = 4.0
MOST_PROCESSES = 5
# Calls that it takes to prove an entrant and to try it out, and those that it takes to race it.
PROOF_CALLS = 4
RACE_CALLS = PROOF_CALLS + FEWEST_ROUNDS
# The anchor is in every round of the hold-out run where that takes at most this share of its time.
ANCHOR_SHARE = 0.25


@dataclass(frozen=True)
class Finalist:
    """Who races, and what building and proving it in a fresh process will take, about."""

    entrant: Entrant | Proven
    build_s: float


def finalists(searches: Sequence[Search], available_s: float) -> tuple[list[Finalist], tuple[str, ...]]:
    """The best configuration of every backend, and others that the search could hardly tell from the fastest.

    The defaults of the fastest backend race too, whatever the search saw of them. What is far behind and would take
    more than its share of the time does not race; that is said.
    """
    bests = [(search, search.best) for search in searches if search.best is not None]
    if not bests:
        return [], ()
    leader = min((best for _, best in bests), key=log_ratio)
    limit = log_ratio(leader) + NEAR
    slow = [
        search.backend.name
        for search, best in bests
        if log_ratio(best) > limit and RACE_CALLS * _call_s(best) > available_s / len(bests)
    ]
    said = (f"{', '.join(slow)}: too slow to race in the time; their numbers are those of the search",) if slow else ()
    bests = [(search, best) for search, best in bests if search.backend.name not in slow]
    chosen = [
        Finalist(search.best_scan or Entrant(search.backend, best.config), _start_s(search, best))
        for search, best in bests
    ]
    near = [
        (log_ratio(trial), Finalist(Entrant(search.backend, trial.config), _start_s(search, trial)))
        for search, best in bests
        for trial in search.trials
        if trial.state == "ok"
        and trial is not best
        and (log_ratio(trial) <= limit or (best is leader and trial.config == search.backend.space.defaults))
        and error_of(trial) <= search.max_error
    ]
    # The defaults of the leader's backend first: they win a tie, and which other configurations it has is luck.
    near.sort(key=lambda one: (one[1].entrant.config != one[1].entrant.backend.space.defaults, one[0]))
    chosen += [finalist for _, finalist in near]
    return chosen[: max(len(bests), MOST_FINALISTS)], said


def _call_s(trial: Trial) -> float:
    assert trial.measurement is not None
    return trial.measurement.median_ms / 1e3


def _start_s(search: Search, trial: Trial) -> float:
    """What building and proving takes in a fresh process."""
    return search.rebuild_s + PROOF_CALLS * _call_s(trial)


def fresh_processes(builds_s: Iterable[float], available_s: float) -> int:
    """How many fresh processes fit into the time, each spending no more than half of its share on starting."""
    return max(0, min(MOST_PROCESSES, int(available_s / (2 * _crowding() * (START_S + sum(builds_s))))))


def _crowding() -> float:
    """How many times longer starting takes here than on an idle machine: the load of the last minute on each CPU."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1.0, load / usable_threads())


def pareto(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """The timed trials that no other one beats in time and in error, the fastest (and least exact) first.

    Times are compared by their ratio to the anchor, errors by the largest of any tensor against float64.
    """
    timed = [trial for trial in trials if trial.state == "ok" and trial.verdict is not None]
    front: list[Trial] = []
    for trial in sorted(timed, key=lambda trial: (log_ratio(trial), error_of(trial))):
        if not front or error_of(trial) < error_of(front[-1]):
            front.append(trial)
    return tuple(front)


def hold_out(
    raced: Race,
    searches: Mapping[str, Search],
    anchor: Proven,
    pace: Pace | None,
    setting: Setting,
    results: TrialStore,
    deadline: float,
    on_round: Callable[[int], None],
) -> Race | str:
    """The best of every backend once more, on fresh inputs in fresh processes; or why there is no time for that.

    The anchor is timed in every round, unless it is slow: then once more beside its pacer, which is. The winner of
    `raced` is confirmed or demoted. Backends that take too long to build for the time are left out, and that is
    said.
    """
    best: dict[str, Trial] = {}
    for standing in raced.standings:
        best.setdefault(standing.trial.backend, standing.trial)
    left_out: list[str] = []
    no_time = "there was no time to start fresh processes; give it a larger budget"
    if not fresh_processes([], deadline - time.monotonic()):
        return no_time
    fresh = setting.with_fresh_inputs()
    now = time.monotonic()
    if pace is not None:
        if MOST_PROCESSES * RACE_CALLS * pace.anchor_s < ANCHOR_SHARE * (deadline - now):
            pace = None
        else:
            pace = measured_again(pace, anchor, setting, now + ANCHOR_SHARE * (deadline - now))
    beside = anchor if pace is None else pace.pacer
    available_s = deadline - time.monotonic()
    backends = {name: search.backend for name, search in searches.items()}
    builds_s = {name: _start_s(searches[name], trial) for name, trial in best.items()}
    while not (processes := fresh_processes([*builds_s.values(), beside.build_ms / 1e3], available_s)):
        if len(builds_s) == 1:
            return no_time
        _, *others = builds_s  # never the winner of the race
        slowest = max(others, key=lambda name: builds_s[name])
        left_out.append(
            f"{slowest} takes {builds_s.pop(slowest):.0f} s to build and prove: its numbers stay those of the race"
        )
    strangers = [
        name for name in (*builds_s, beside.backend.name) if not is_installed(backends.get(name, beside.backend))
    ]
    if strangers:
        return f"a fresh process does not find {', '.join(strangers)} by name"
    held = race(
        [Entrant(backends[name], best[name].config) for name in builds_s],
        anchor,
        fresh,
        results,
        deadline,
        phase="holdout",
        processes=processes,
        on_round=on_round,
        pace=pace,
    )
    outcome = confirmed(held, raced)
    return replace(outcome, notices=(*left_out, *outcome.notices))


def confirmed(held: Race, raced: Race) -> Race:
    """`held` led by the winner of `raced`, unless it shows another to be faster; then that is said."""
    if raced.winner is None or held.winner is None:
        return held
    chosen = raced.winner.trial
    found = [one for one in held.standings if (one.trial.backend, one.trial.config) == (chosen.backend, chosen.config)]
    if found and (found[0] is held.winner or found[0].tied):
        rest = (one for one in held.standings if one is not found[0])
        return replace(held, standings=(found[0], *rest), confirms=found[0] is not held.winner)
    reason = "is slower there" if found else "failed there"
    said = f"{chosen.label} won the race and {reason}: the hold-out run names {held.winner.trial.label} instead"
    return replace(held, notices=(*held.notices, said))
