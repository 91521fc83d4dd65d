"""Finalists and an anchor in one interleaved run, here or in several fresh processes; its blocks become records."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

from scanlab.bench.pace import Pace
from scanlab.bench.prove import Failure, Proven, Setting
from scanlab.bench.ranking import Race, decided, noise_floor, notices_of, ranked
from scanlab.bench.records import Phase
from scanlab.bench.samples import Measurement
from scanlab.bench.store import TrialStore
from scanlab.bench.worker import (
    FEWEST_ROUNDS,
    MOST_ROUNDS,
    Entrant,
    Heat,
    Lane,
    is_installed,
    run_fresh_heat,
    run_heat,
)
from scanlab.contract.verify import Verdict

# Share of the time for a race by which its last process may exceed it before it is killed.
OVERTIME = 0.1
# One process cannot show that processes differ.
FEWEST_PROCESSES = 2


def race(
    entrants: Sequence[Entrant | Proven],
    anchor: Entrant | Proven,
    setting: Setting,
    results: TrialStore,
    deadline: float,
    phase: Phase = "race",
    processes: int = 0,
    on_round: Callable[[int], None] = lambda number: None,
    pace: Pace | None = None,
) -> Race:
    """Time `entrants` beside `anchor` in interleaved rounds until they can be told apart, or until `deadline`.

    deadline   a value of time.monotonic(); every entrant takes part in at least one round
    processes  0 holds the race in this process, otherwise it is held in up to so many fresh ones in turn
    pace       what is timed in the anchor's stead where that is slow
    One trial for each entrant is appended to `results`. Raises RejectedError where the anchor cannot run and
    ConfigError where a configuration is not legal.
    """
    started_at = time.time()
    configs = [one.backend.space.complete(one.config, setting.problem, one.backend.name) for one in entrants]
    notices: list[str] = []
    beside = anchor if pace is None else pace.pacer
    own = [entrant.backend.name for entrant in (*entrants, beside) if not is_installed(entrant.backend)]
    if processes and own:
        notices.append(f"the race was held in this process: {', '.join(own)} cannot be found by name in a fresh one")
    if not processes or own:
        heats = [
            run_heat(
                entrants,
                beside,
                setting,
                deadline,
                most_rounds=MOST_ROUNDS,
                decided=lambda heat: decided([heat]),
                on_round=on_round,
            )
        ]
    else:
        heats, died = _fresh_heats(entrants, beside, setting, deadline, processes, on_round)
        notices += died
    if not heats:
        return Race((), (), math.inf, 0, 0, tuple(notices))
    trials = []
    for index, (entrant, config) in enumerate(zip(entrants, configs, strict=True)):
        outcome, verdict = _outcome([heat.lanes[index] for heat in heats], anchor, heats[0].anchor_calls)
        if pace is not None and isinstance(outcome, Measurement):
            outcome = pace.applied(outcome)
        trials.append(setting.trial(phase, entrant.backend, config, started_at, outcome, verdict))
    for trial in trials:
        results.append(trial)
    simple = {
        trial.id: (entrant.backend.rank, entrant.backend.space.num_nondefault(trial.config))
        for trial, entrant in zip(trials, entrants, strict=True)
    }
    floor = noise_floor(heats)
    attainable = {trial.id: setting.attainable_ms(trial.config) for trial in trials}
    standings = ranked([trial for trial in trials if trial.state == "ok"], simple, attainable, floor)
    rounds = sum(heat.rounds for heat in heats)
    dropped = tuple(trial for trial in trials if trial.state != "ok")
    return Race(standings, dropped, floor, rounds, len(heats), (*notices, *notices_of(standings, rounds)))


def _fresh_heats(
    entrants: Sequence[Entrant | Proven],
    anchor: Entrant | Proven,
    setting: Setting,
    deadline: float,
    processes: int,
    on_round: Callable[[int], None],
) -> tuple[list[Heat], list[str]]:
    """Heats in fresh processes until they decide the race, and what became of those that died."""
    heats: list[Heat] = []
    died: list[str] = []
    killed_at = deadline + OVERTIME * (deadline - time.monotonic())
    named = [Entrant(entrant.backend, entrant.config) for entrant in entrants]
    for process in range(processes):
        now = time.monotonic()
        if process and now >= deadline:
            break
        until = now + (deadline - now) / (processes - process)
        before = sum(heat.rounds for heat in heats)
        heat = run_fresh_heat(
            named,
            Entrant(anchor.backend, anchor.config),
            setting,
            until,
            killed_at,
            process,
            most_rounds=max(FEWEST_ROUNDS, MOST_ROUNDS // processes),
            on_round=partial(_numbered, on_round, before),
        )
        if isinstance(heat, str):
            died.append(f"process {process} of the race gave nothing: {heat}")
        else:
            heats.append(heat)
        if len(heats) >= min(processes, FEWEST_PROCESSES) and decided(heats):
            break
    return heats, died


def _numbered(on_round: Callable[[int], None], before: int, number: int) -> None:
    on_round(before + number)


def _outcome(
    lanes: Sequence[Lane], anchor: Entrant | Proven, anchor_calls: int
) -> tuple[Measurement | Failure, Verdict | None]:
    """What the lanes of one entrant come to: a failure anywhere, or one measurement of all blocks."""
    for lane in lanes:
        if lane.failure is not None:
            return lane.failure, None
    first = lanes[0]
    peaks = [lane.peak_bytes for lane in lanes if lane.peak_bytes is not None]
    measurement = Measurement(
        anchor=anchor.backend.name,
        anchor_config=anchor.backend.space.defaults | dict(anchor.config),
        anchor_source_hash=anchor.backend.source_hash,
        calls=first.calls,
        anchor_calls=anchor_calls,
        build_ms=statistics.median(lane.build_ms for lane in lanes),
        first_call_ms=statistics.median(lane.first_call_ms for lane in lanes),
        peak_bytes=max(peaks, default=None),
        blocks=tuple(block for lane in lanes for block in lane.blocks),
    )
    return measurement, first.verdict
