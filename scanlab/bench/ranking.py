"""What a race says: who leads, who ties, how sure that is, and which differences mean nothing.

One finalist runs twice, under another number: what that pair differs by is noise, and a difference no larger
than that is a tie. A tie goes to the simplest: the lower rank of the ladder, then what departs least from its
defaults; then to the smaller error, then to the smaller memory.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scanlab.bench.records import Trial
from scanlab.bench.samples import Block, undisturbed
from scanlab.bench.stats import Interval, interval_of_median
from scanlab.bench.worker import FEWEST_ROUNDS, Heat

# A race is over when every entrant is shown to be slower than the leader, or within this of it.
WORTH_KNOWING = math.log(1.02)
# A simpler entrant wins a tie only where it is at most this slower by median, however large the noise.
WORTH_FOR_SIMPLICITY = math.log(1.05)
# A race is looked at after every round, and each look may see a difference that is none. Looks at growing data
# agree with each other, so that many of them count for a few.
LOOKS = 5


@dataclass(frozen=True)
class Standing:
    """How an entrant did.

    behind     log(its time / the leader's), paired within rounds; 0 for the leader
    interval   of `behind`, at 95 % corrected for the number of entrants and for looking after every round
    tied       not shown to be slower than the leader, or behind it by no more than the noise floor
    share      of what the machine could attain: the time that wastes nothing over the time taken; None if unknown
    num_nondefault how many tunables are not at their defaults
    """

    trial: Trial
    rank: int
    behind: float
    interval: Interval
    tied: bool
    share: float | None = None
    num_nondefault: int = 0


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
        near = [standing for standing in self.ties if standing.behind <= margin(self.noise_floor)]
        far = [standing for standing in self.ties if standing not in near]
        if near:
            said += f"; tied with {_labels(near)}, and chosen as the {self._advantage(near)}"
        if far:
            said += f"; not told apart from {_labels(far)}, by the rounds there were ({self.rounds})"
        if self.ties:
            return f"{said}."
        slower = self.standings[1:]
        if slower:
            nearest = min(slower, key=lambda standing: standing.behind)
            return f"{said}; the next, {nearest.trial.label}, takes {math.exp(nearest.behind):.3g} times as long."
        return f"{said}; nothing else ran."

    def _advantage(self, near: Sequence[Standing]) -> str:
        """What the winner has before those that are about as fast."""
        assert self.winner is not None
        if self.confirms:
            return "winner of the race before"
        if any(standing.rank > self.winner.rank for standing in near):
            return "simplest"
        if any(standing.num_nondefault > self.winner.num_nondefault for standing in near):
            return "nearest to its defaults"
        return "most exact, then smallest in memory, of its rank"


def margin(noise_floor: float) -> float:
    """The log ratio by which a simpler entrant may be behind the fastest, and win.

    Not shown to be slower is not enough to win: on a restless machine hardly anything is shown.
    """
    return min(max(noise_floor, WORTH_KNOWING), WORTH_FOR_SIMPLICITY)


def _labels(standings: Sequence[Standing]) -> str:
    return ", ".join(standing.trial.label for standing in standings)


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


def noise_floor(heats: Sequence[Heat]) -> float:
    """How far apart two runs of one configuration may lie, at 95 %; infinite where too few rounds tell."""
    differences = [
        values for heat in heats if heat.doubled >= 0 for values in paired(heat.twin, heat.lanes[heat.doubled].blocks)
    ]
    return max(abs(bound) for bound in interval_of_median(differences))


def decided(heats: Sequence[Heat]) -> bool:
    """Whether every entrant is shown to be slower than the leader, or close enough to it.

    Never while one configuration differs from itself by more than that: what cannot be told apart then may yet be.
    """
    floor = noise_floor(heats)
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


def ranked(
    trials: Sequence[Trial],
    simple: Mapping[str, tuple[int, int]],
    attainable: Mapping[str, float | None],
    floor: float,
) -> tuple[Standing, ...]:
    """How everyone did: the winner first, then by time.

    simple      by trial: the rank of its backend, and how many of its tunables are not at their defaults
    attainable  by trial: milliseconds of one call that wastes nothing; None if unknown
    """
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
            num_nondefault=simple[trial.id][1],
        )
        for trial, (median, interval) in zip(trials, behind, strict=True)
    ]
    winner = min((one for one in standings if one.tied and one.behind <= margin(floor)), key=_preference)
    rest = sorted((one for one in standings if one is not winner), key=lambda one: one.behind)
    return (winner, *rest)


def _ties(median: float, interval: Interval, floor: float) -> bool:
    return interval.low <= 0 or median <= floor


def told_apart(heats: Sequence[Heat]) -> bool:
    """Whether these heats show any entrant to be slower than the leader."""
    floor = noise_floor(heats)
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
    """What a tie is decided by, smallest first: rank, num_nondefault, error, memory in steps of a tenth, time."""
    trial = standing.trial
    assert trial.verdict is not None
    assert trial.measurement is not None
    memory = trial.measurement.peak_bytes
    step = math.inf if memory is None else round(math.log(max(memory, 1)) / math.log(1.1))
    return (standing.rank, standing.num_nondefault, trial.verdict.worst, step, standing.behind)


def notices_of(standings: Sequence[Standing], rounds: int) -> tuple[str, ...]:
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
