"""Finalists and an anchor in one interleaved run: who is fastest, how sure that is, and which differences mean nothing.

One finalist runs twice, under another number: what that pair differs by is noise, and a difference no larger
than that is a tie. A tie goes to the simplest: the lower rung of the ladder, then what departs least from its
defaults; then to the smaller error, then to the smaller memory.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from scanlab.lab.heat import (
    FEWEST_ROUNDS,
    MOST_ROUNDS,
    Entrant,
    Heat,
    Lane,
    is_installed,
    run_fresh_heat,
    run_heat,
)
from scanlab.lab.intervals import Interval, interval_of_median
from scanlab.lab.measure import Block, Measurement, undisturbed
from scanlab.lab.pace import Pace
from scanlab.lab.prove import Failure, Proven, Setting
from scanlab.lab.results import Phase, Results, Trial
from scanlab.lab.verify import Verdict

__all__ = ["Entrant", "Race", "Standing", "decided", "paired", "race", "told_apart"]

# A race is over when every entrant is shown to be slower than the leader, or within this of it.
WORTH_KNOWING = math.log(1.02)
# A simpler entrant wins a tie only where it is at most this slower by median, however large the noise.
WORTH_FOR_SIMPLICITY = math.log(1.05)
# A race is looked at after every round, and each look may see a difference that is none. Looks at growing data
# agree with each other, so that many of them count for a few.
LOOKS = 5
# Share of the time for a race by which its last process may exceed it before it is killed.
OVERTIME = 0.1
# One process cannot show that processes differ.
FEWEST_PROCESSES = 2


@dataclass(frozen=True)
class Standing:
    """How an entrant did.

    behind     log(its time / the leader's), paired within rounds; 0 for the leader
    interval   of `behind`, at 95 % corrected for the number of entrants and for looking after every round
    tied       not shown to be slower than the leader, or behind it by no more than the noise floor
    share      of what the machine could attain: the time that wastes nothing over the time taken; None if unknown
    departures how many tunables are not at their defaults
    """

    trial: Trial
    rung: int
    behind: float
    interval: Interval
    tied: bool
    share: float | None = None
    departures: int = 0


@dataclass(frozen=True)
class Race:
    """The outcome of a race: the winner first, then by time; those that could not run are in `dropped`.

    noise_floor  the log ratio by which two runs of one configuration may differ here, at 95 %; infinite where too
                 few rounds tell
    confirms     whether the winner was chosen by an earlier race, which this one does not contradict
    """

    standings: tuple[Standing, ...]
    dropped: tuple[Trial, ...]
    noise_floor: float
    rounds: int
    processes: int
    notices: tuple[str, ...]
    confirms: bool = False

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial of the race, the winner's first."""
        return (*(standing.trial for standing in self.standings), *self.dropped)

    @property
    def winner(self) -> Standing | None:
        """The entrant to deploy, or None where no entrant could run."""
        return self.standings[0] if self.standings else None

    @property
    def ties(self) -> tuple[Standing, ...]:
        """The other entrants that could not be told apart from the fastest."""
        return tuple(standing for standing in self.standings[1:] if standing.tied)

    @property
    def why(self) -> str:
        """One sentence that names the winner and says why."""
        if self.winner is None:
            return "No winner: no entrant could run."
        measurement = self.winner.trial.measurement
        assert measurement is not None
        said = f"{self.winner.trial.label}: {measurement.median_ms:.3g} ms, {self.winner.trial.speedup_spelled}"
        if self.winner.trial.phase == "holdout":
            said += ", by a hold-out run on fresh inputs"
        if self.winner.share is not None:
            said += f"; {self.winner.share:.0%} of what the arithmetic and the traffic of this problem allow here"
        if self.ties:
            labels = ", ".join(standing.trial.label for standing in self.ties)
            return f"{said}; tied with {labels}, and chosen as the {self._advantage()}."
        slower = [standing for standing in self.standings[1:] if not standing.tied]
        if slower:
            nearest = min(slower, key=lambda standing: standing.behind)
            return f"{said}; the next, {nearest.trial.label}, takes {math.exp(nearest.behind):.3g} times as long."
        return f"{said}; nothing else ran."

    def _advantage(self) -> str:
        assert self.winner is not None
        if self.confirms:
            return "winner of the race before"
        own, fastest = self.winner, all(standing.behind >= self.winner.behind for standing in self.ties)
        if any((each.rung, each.departures) < (own.rung, own.departures) for each in self.ties):
            return "faster by median" if fastest else "simplest of those about as fast as the fastest"
        if any(standing.rung > own.rung for standing in self.ties):
            return "simplest"
        if any(standing.departures > own.departures for standing in self.ties):
            return "nearest to its defaults"
        return "most exact, then smallest in memory, of its rung"


def race(
    entrants: Sequence[Entrant | Proven],
    anchor: Entrant | Proven,
    setting: Setting,
    results: Results,
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
    simple = {trial.id: _simplicity(entrant, trial) for trial, entrant in zip(trials, entrants, strict=True)}
    floor = _noise_floor(heats)
    attainable = {trial.id: setting.attainable_ms(trial.config) for trial in trials}
    standings = _standings([trial for trial in trials if trial.state == "ok"], simple, attainable, floor)
    rounds = sum(heat.rounds for heat in heats)
    dropped = tuple(trial for trial in trials if trial.state != "ok")
    return Race(standings, dropped, floor, rounds, len(heats), (*notices, *_notices(standings, rounds)))


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


def paired(one: Sequence[Block], other: Sequence[Block]) -> list[list[float]]:
    """log(one / other) in the rounds that both ran in, one list for each process.

    Only the undisturbed rounds, where there are enough of them.
    """
    theirs = {(block.process, block.round): block.log_ratio for block in other}
    shared = undisturbed([block for block in one if (block.process, block.round) in theirs], fewest=FEWEST_ROUNDS)
    differences: dict[int, list[float]] = {}
    for block in shared:
        differences.setdefault(block.process, []).append(block.log_ratio - theirs[block.process, block.round])
    return list(differences.values())


def _noise_floor(heats: Sequence[Heat]) -> float:
    """How far apart two runs of one configuration may lie, at 95 %; infinite where too few rounds tell."""
    differences = [
        values for heat in heats if heat.doubled >= 0 for values in paired(heat.twin, heat.lanes[heat.doubled].blocks)
    ]
    return max(abs(bound) for bound in interval_of_median(differences))


def decided(heats: Sequence[Heat]) -> bool:
    """Whether every entrant is shown to be slower than the leader, or close enough to it.

    Never while one configuration differs from itself by more than that: what cannot be told apart then may yet be.
    """
    floor = _noise_floor(heats)
    if floor > WORTH_FOR_SIMPLICITY:
        return False
    close = max(floor, WORTH_KNOWING)
    return all(
        interval.high <= close or (interval.low > 0 and median > floor)
        for median, interval in _behind(_blocks_of(heats))
    )


def _behind(everyone: Sequence[Sequence[Block]]) -> list[tuple[float, Interval]]:
    """How far each is behind the fastest; the interval is corrected for their number and for the looks (Bonferroni)."""
    if not everyone:
        return []
    medians = [statistics.median(block.log_ratio for block in undisturbed(blocks)) for blocks in everyone]
    leader = medians.index(min(medians))
    confidence = 1 - 0.05 / (LOOKS * max(1, len(everyone) - 1))
    behind = []
    for index, blocks in enumerate(everyone):
        if index == leader:
            behind.append((0.0, Interval(0.0, 0.0)))
            continue
        differences = paired(blocks, everyone[leader])
        median = statistics.median(value for process in differences for value in process)
        behind.append((median, interval_of_median(differences, confidence)))
    return behind


def _standings(
    trials: Sequence[Trial],
    simple: Mapping[str, tuple[int, int]],
    attainable: Mapping[str, float | None],
    floor: float,
) -> tuple[Standing, ...]:
    """The winner first, then by time."""
    if not trials:
        return ()
    behind = _behind([trial.measurement.blocks for trial in trials if trial.measurement])
    standings = [
        Standing(
            trial,
            simple[trial.id][0],
            median,
            interval,
            tied=_ties(median, interval, floor),
            share=_share(trial, attainable[trial.id]),
            departures=simple[trial.id][1],
        )
        for trial, (median, interval) in zip(trials, behind, strict=True)
    ]
    # Not shown to be slower is not enough to win: on a restless machine hardly anything is shown.
    close = min(max(floor, WORTH_KNOWING), WORTH_FOR_SIMPLICITY)
    winner = min((one for one in standings if one.tied and one.behind <= close), key=_preference)
    rest = sorted((one for one in standings if one is not winner), key=lambda one: one.behind)
    return (winner, *rest)


def _simplicity(entrant: Entrant | Proven, trial: Trial) -> tuple[int, int]:
    """The rung of an entrant, and how many of its tunables are not at their defaults."""
    return entrant.backend.rung, entrant.backend.space.departures(trial.config)


def _ties(median: float, interval: Interval, floor: float) -> bool:
    return interval.low <= 0 or median <= floor


def told_apart(heats: Sequence[Heat]) -> bool:
    """Whether these heats show any entrant to be slower than the leader."""
    floor = _noise_floor(heats)
    return not all(_ties(median, interval, floor) for median, interval in _behind(_blocks_of(heats)))


def _blocks_of(heats: Sequence[Heat]) -> list[list[Block]]:
    """The blocks of every entrant that did not fail."""
    lanes = zip(*(heat.lanes for heat in heats), strict=True)
    return [[block for lane in own for block in lane.blocks] for own in lanes if not any(lane.failure for lane in own)]


def _share(trial: Trial, attainable_ms: float | None) -> float | None:
    if attainable_ms is None or trial.measurement is None:
        return None
    return attainable_ms / trial.measurement.median_ms


def _preference(standing: Standing) -> tuple[float, ...]:
    """What a tie is decided by, smallest first: rung, departures, error, memory in steps of a tenth, time."""
    trial = standing.trial
    assert trial.verdict is not None
    assert trial.measurement is not None
    memory = trial.measurement.peak_bytes
    step = math.inf if memory is None else round(math.log(max(memory, 1)) / math.log(1.1))
    return (standing.rung, standing.departures, trial.verdict.worst, step, standing.behind)


def _notices(standings: Sequence[Standing], rounds: int) -> tuple[str, ...]:
    notices = []
    measurements = [standing.trial.measurement for standing in standings if standing.trial.measurement]
    fullest = max(measurements, key=lambda measurement: len(measurement.blocks), default=None)
    if fullest is not None and fullest.disturbed_blocks and fullest.used == fullest.blocks:
        reason = next(block.disturbed for block in fullest.blocks if block.disturbed)
        notices.append(
            f"{fullest.disturbed_blocks} of {len(fullest.blocks)} rounds of the race were disturbed ({reason});"
            " too few were not, so that all count"
        )
    if standings and rounds < FEWEST_ROUNDS:
        notices.append(
            f"rounds that fitted into the time for the race: {rounds}, fewer than {FEWEST_ROUNDS}; give it more for"
            " intervals"
        )
    return tuple(notices)
