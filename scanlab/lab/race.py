"""Finalists and an anchor in one interleaved run: who is fastest, how sure that is, and which differences mean nothing.

One finalist runs twice, under another number: what that pair differs by is noise, and a difference no larger
than that is a tie. A tie goes to the lower rung of the ladder, then to the smaller error, then to the
smaller memory.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from scanlab.backend import Backend
from scanlab.errors import RejectedError
from scanlab.lab.intervals import Interval, bootstrap
from scanlab.lab.measure import Arm, Block, Measurement, peak_bytes, take_round, undisturbed
from scanlab.lab.prove import Failure, Proven, Setting, guarded, prove
from scanlab.lab.results import Phase, Results, Trial
from scanlab.space import Config

# A race is over when every entrant is shown to be slower than the leader, or within this of it.
WORTH_KNOWING = math.log(1.02)
# A simpler entrant wins a tie only where it is at most this slower by median, however large the noise.
WORTH_FOR_SIMPLICITY = math.log(1.05)
FEWEST_ROUNDS = 5
MOST_ROUNDS = 60


@dataclass(frozen=True)
class Entrant:
    """A backend and a configuration that take part in a race."""

    backend: Backend
    config: Config


@dataclass(frozen=True)
class Standing:
    """How an entrant did.

    behind     log(its time / the leader's), paired within rounds; 0 for the leader
    interval   of `behind`, at a confidence corrected for the number of entrants
    tied       not shown to be slower than the leader, or behind it by no more than the noise floor
    """

    trial: Trial
    rung: int
    behind: float
    interval: Interval
    tied: bool


@dataclass(frozen=True)
class Race:
    """The outcome of a race: the winner first, then by time; those that could not run are in `dropped`.

    noise_floor  the largest log ratio that two runs of one configuration could be made to differ by here
    """

    standings: tuple[Standing, ...]
    dropped: tuple[Trial, ...]
    noise_floor: float
    rounds: int
    notices: tuple[str, ...]

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
        low, high = measurement.speedup_interval
        said = (
            f"{self.winner.trial.label}: {measurement.median_ms:.3g} ms, {measurement.speedup:.3g} times as fast as"
            f" {measurement.anchor} (95 %: {low:.3g} to {high:.3g})"
        )
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
        if any(standing.rung < self.winner.rung for standing in self.ties):
            return "faster by median"
        if any(standing.rung > self.winner.rung for standing in self.ties):
            return "simplest"
        return "most exact, then smallest in memory, of its rung"


@dataclass
class _Runner:
    proven: Proven
    arm: Arm
    started_at: float
    every: int = 1
    blocks: list[Block] = field(default_factory=list)
    failure: Failure | None = None


def race(
    entrants: Sequence[Entrant | Proven],
    anchor: Entrant | Proven,
    setting: Setting,
    results: Results,
    deadline: float,
    phase: Phase = "race",
    on_round: Callable[[int], None] = lambda number: None,
) -> Race:
    """Time `entrants` beside `anchor` in interleaved rounds until they can be told apart, or until `deadline`.

    `deadline` is a value of time.monotonic(). Every entrant is proved first (a Proven one has been), and one
    trial for each is appended to `results`. Entrants that take long run in fewer rounds, always beside the
    anchor. Raises RejectedError where the anchor cannot run.
    """
    yardstick = anchor if isinstance(anchor, Proven) else prove(anchor.backend, anchor.config, setting)
    if isinstance(yardstick, Failure):
        raise RejectedError(f"the anchor cannot run: {yardstick.reason}")
    anchor_arm = yardstick.arm(setting)
    runners: list[_Runner] = []
    dropped: list[Trial] = []
    for entrant in entrants:
        started_at = time.time()
        proven = entrant if isinstance(entrant, Proven) else prove(entrant.backend, entrant.config, setting)
        ready = proven if isinstance(proven, Failure) else guarded(partial(proven.arm, setting))
        if isinstance(proven, Proven) and isinstance(ready, Arm):
            runners.append(_Runner(proven, ready, started_at))
        elif isinstance(ready, Failure):
            dropped.append(setting.trial(phase, entrant.backend, entrant.config, started_at, ready))
    twin = _twin(runners, setting)
    _set_pace(runners, anchor_arm, deadline)
    rounds = _run(runners, twin, anchor_arm, random.Random(setting.seed), deadline, on_round)

    finished: list[tuple[_Runner, Trial]] = []
    for runner in runners:
        proven = runner.proven
        outcome: Failure | Measurement
        peak = guarded(partial(peak_bytes, runner.arm))
        if runner.failure is not None:
            outcome = runner.failure
        elif isinstance(peak, Failure):
            outcome = peak
        else:
            outcome = proven.measurement(runner.arm, yardstick, anchor_arm, runner.blocks, peak)
        trial = setting.trial(phase, proven.backend, proven.config, runner.started_at, outcome, proven.verdict)
        if trial.state == "ok":
            finished.append((runner, trial))
        else:
            dropped.append(trial)
    for trial in (*(trial for _, trial in finished), *dropped):
        results.append(trial)
    floor = _noise_floor(twin, runners)
    standings = _standings(finished, floor)
    return Race(standings, tuple(dropped), floor, rounds, _notices(standings, rounds))


def paired(one: Sequence[Block], other: Sequence[Block]) -> list[list[float]]:
    """log(one / other) in the rounds that both ran in, one list for each process.

    Only the undisturbed rounds, where there are enough of them.
    """
    theirs = {(block.process, block.round): block.log_ratio for block in other}
    shared = undisturbed([block for block in one if (block.process, block.round) in theirs])
    differences: dict[int, list[float]] = {}
    for block in shared:
        differences.setdefault(block.process, []).append(block.log_ratio - theirs[block.process, block.round])
    return list(differences.values())


def _twin(runners: Sequence[_Runner], setting: Setting) -> _Runner | None:
    """The fastest entrant once more: the one that others must be told apart from."""
    if not runners:
        return None
    fastest = min(runners, key=lambda runner: runner.arm.cost_s / (runner.arm.calls * runner.arm.samples))
    return _Runner(fastest.proven, fastest.proven.arm(setting), fastest.started_at)


def _set_pace(runners: Sequence[_Runner], anchor: Arm, deadline: float) -> None:
    """Let entrants that take much longer than the others run in fewer rounds, but in enough of them."""
    if not runners:
        return
    usual_s = max(anchor.cost_s, statistics.median(runner.arm.cost_s for runner in runners))
    for runner in runners:
        runner.every = max(1, round(runner.arm.cost_s / (4 * usual_s)))
    round_s = anchor.cost_s + sum(runner.arm.cost_s / runner.every for runner in runners)
    rounds = min(MOST_ROUNDS, (deadline - time.monotonic()) / round_s)
    for runner in runners:
        runner.every = max(1, min(runner.every, int(rounds / FEWEST_ROUNDS)))


def _run(
    runners: Sequence[_Runner],
    twin: _Runner | None,
    anchor: Arm,
    rng: random.Random,
    deadline: float,
    on_round: Callable[[int], None],
) -> int:
    """Run rounds, the first with every entrant whatever the deadline; returns how many."""
    number, slowness, clean = 0, 1.0, 0
    while runners and clean < MOST_ROUNDS and number < 2 * MOST_ROUNDS:
        due = [runner for runner in runners if runner.failure is None and number % runner.every == 0]
        due += [twin] if twin is not None and twin.failure is None else []
        expected_s = anchor.cost_s + sum(runner.arm.cost_s for runner in due)
        started = time.monotonic()
        if number and started + slowness * expected_s > deadline:
            break
        blocks = guarded(partial(take_round, [one.arm for one in due], anchor, rng, number))
        if isinstance(blocks, Failure):
            _find_culprit(due, blocks)
            continue
        slowness = max(1.0, (time.monotonic() - started) / expected_s)
        for runner, block in zip(due, blocks, strict=True):
            runner.blocks.append(block)
        clean += blocks[0].disturbed is None if blocks else 0
        number += 1
        on_round(number)
        if number >= FEWEST_ROUNDS and _decided(runners, twin):
            break
    return number


def _find_culprit(due: Sequence[_Runner], failure: Failure) -> None:
    """Call each entrant once and take those out that fail; all of them where none does by itself."""
    alone = [(runner, guarded(runner.arm.call)) for runner in due]
    guilty = [(runner, outcome) for runner, outcome in alone if isinstance(outcome, Failure)]
    for runner, outcome in guilty or [(runner, failure) for runner in due]:
        runner.failure = outcome


def _noise_floor(twin: _Runner | None, runners: Sequence[_Runner]) -> float:
    """How far apart the two runs of one configuration may lie, at 95 %."""
    if twin is None:
        return 0.0
    double = next(runner for runner in runners if runner.proven is twin.proven)
    return max(abs(bound) for bound in bootstrap(paired(twin.blocks, double.blocks)))


def _decided(runners: Sequence[_Runner], twin: _Runner | None) -> bool:
    """Whether every entrant is shown to be slower than the leader, or close enough to it."""
    floor = _noise_floor(twin, runners)
    close = max(floor, WORTH_KNOWING)
    running = [runner.blocks for runner in runners if runner.failure is None]
    return all(interval.high <= close or (interval.low > 0 and median > floor) for median, interval in _behind(running))


def _behind(everyone: Sequence[Sequence[Block]]) -> list[tuple[float, Interval]]:
    """How far each is behind the fastest, with an interval corrected for their number (Bonferroni)."""
    medians = [statistics.median(block.log_ratio for block in undisturbed(blocks)) for blocks in everyone]
    leader = medians.index(min(medians))
    confidence = 1 - 0.05 / max(1, len(everyone) - 1)
    behind = []
    for index, blocks in enumerate(everyone):
        if index == leader:
            behind.append((0.0, Interval(0.0, 0.0)))
            continue
        differences = paired(blocks, everyone[leader])
        median = statistics.median(value for process in differences for value in process)
        behind.append((median, bootstrap(differences, confidence)))
    return behind


def _standings(finished: Sequence[tuple[_Runner, Trial]], floor: float) -> tuple[Standing, ...]:
    """The winner first, then by time."""
    if not finished:
        return ()
    behind = _behind([runner.blocks for runner, _ in finished])
    standings = [
        Standing(trial, runner.proven.backend.rung, median, interval, tied=interval.low <= 0 or median <= floor)
        for (runner, trial), (median, interval) in zip(finished, behind, strict=True)
    ]
    # Not shown to be slower is not enough to win: on a restless machine hardly anything is shown.
    close = min(max(floor, WORTH_KNOWING), WORTH_FOR_SIMPLICITY)
    winner = min((one for one in standings if one.tied and one.behind <= close), key=_preference)
    rest = sorted((one for one in standings if one is not winner), key=lambda one: one.behind)
    return (winner, *rest)


def _preference(standing: Standing) -> tuple[float, ...]:
    """What a tie is decided by, smallest first: rung, error, memory, time."""
    trial = standing.trial
    assert trial.verdict is not None
    assert trial.measurement is not None
    memory = trial.measurement.peak_bytes
    return (standing.rung, trial.verdict.worst, math.inf if memory is None else memory, standing.behind)


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
        notices.append(f"only {rounds} rounds fitted into the time for the race: give it more for narrower intervals")
    return tuple(notices)
