"""Ranking of compared candidates: the leader, ties, the noise floor, and the stopping rule.

One candidate runs twice, as an A/A control: the difference of that pair is noise, and a difference no larger than that
is a tie. The untuned choice wins every tie. Any other tie goes to the simplest: the lower rank,
then the fewest changes of its defaults; then the smaller error, then the smaller memory.

Clean rounds alone count. A candidate with too few of them is neither slower nor tied: its place is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scanlab.bench.objective import Objective, difference, level, pairs_of, smallest_ratio
from scanlab.bench.records import Trial
from scanlab.bench.samples import Block
from scanlab.bench.stats import UNKNOWN, Interval
from scanlab.contract.evidence import EvidenceRank

# A comparison is over when every candidate is shown to be slower than the leader, or within this of it.
WORTH_KNOWING = math.log(1.02)
# A simpler candidate wins a tie only if it is at most this slower by median, however large the noise.
WORTH_FOR_SIMPLICITY = math.log(1.05)
# So many times slower in each of a few rounds is slower, though these are too few for an interval.
LARGE_DIFFERENCE = math.log(2.0)
MIN_ROUNDS_OF_LARGE = 3
# One process cannot show that processes differ, as memory and code lie elsewhere in each: by less than this, about.
MIN_PROCESSES = 2
NOISE_OF_PROCESSES = math.log(1.05)
# A sentence names no more candidates than this; the table has all.
MAX_LABELS = 3
# The ranking is computed after every round, and each time may show a difference that is none. Looks at growing data
# agree with each other, so that many of them count for a few.
LOOKS = 5


@dataclass(frozen=True)
class Place:
    """Distance of a candidate to the leader, paired within the clean rounds of both.

    Attributes:
        behind: log(its time / the leader's); 0 for the leader, NaN without a common clean round.
        interval: Interval of `behind`, at 95 %; corrected for the number of candidates and for looks after every round.
        distinguishable: Whether it is shown to be slower than the leader by more than the noise.
    """

    behind: float
    interval: Interval
    distinguishable: bool

    @property
    def tied(self) -> bool:
        """True if there are rounds enough to tell, and they do not show it to be slower."""
        return self.interval.known and not self.distinguishable


@dataclass(frozen=True)
class RankedCandidate:
    """A candidate of a comparison, and its place.

    Attributes:
        rank: Rank of its backend, the simplest first.
        num_nondefault: Number of tunables that are not at their defaults.
        attainable_share: Time of a kernel that wastes nothing over its time; None if unknown.
        is_untuned: Whether it serves where nothing was tuned.
    """

    trial: Trial
    rank: int
    num_nondefault: int
    place: Place
    attainable_share: float | None = None
    is_untuned: bool = False


@dataclass(frozen=True)
class Gain:
    """Relative speed gained over the untuned choice: 0.07 is 7 % more calls a second."""

    over: str
    value: float
    interval: Interval

    @property
    def text(self) -> str:
        """Gain and interval, such as "7 % (4 to 9)"."""
        spread = f"{self.interval.low:.0%} to {self.interval.high:.0%}" if self.interval.known else "unknown"
        return f"{self.value:.0%} ({spread})".replace("%", " %")


@dataclass(frozen=True)
class Comparison:
    """Outcome of a comparison: the winner first, then by time; candidates that failed are in `dropped`.

    Attributes:
        winner: The candidate to deploy; None if too little was measured to name one.
        noise_floor: log ratio by which two runs of one candidate may differ, at 95 %; infinite if unknown.
        rounds: All rounds, and those that nothing disturbed.
        gain: Gain of the winner over the untuned choice; None if that choice won or took no part.
        confirms: Whether the winner was chosen by an earlier comparison that this one does not contradict.
        objective: The time that candidates are ranked by.
    """

    ranking: tuple[RankedCandidate, ...]
    winner: RankedCandidate | None
    dropped: tuple[Trial, ...]
    noise_floor: float
    rounds: int
    clean_rounds: int
    processes: int
    notices: tuple[str, ...]
    gain: Gain | None = None
    confirms: bool = False
    objective: Objective = "median"

    def led_by(self, winner: RankedCandidate | None) -> Comparison:
        """Return this comparison with another winner, its ranking and its gain."""
        gain = gain_over_untuned(self.ranking, winner, self.objective)
        return replace(self, ranking=ordered(self.ranking, winner), winner=winner, gain=gain)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial of the comparison, the winner's first."""
        return (*(each.trial for each in self.ranking), *self.dropped)

    @property
    def ties(self) -> tuple[RankedCandidate, ...]:
        """The others that are not distinguishable from the fastest."""
        return tuple(each for each in self.ranking if each.place.tied and each is not self.winner)

    @property
    def why(self) -> str:
        """Sentence that names the winner and says why."""
        if self.winner is None:
            busy = next((each.reason for each in self.dropped if each.state == "disturbed"), None)
            if not self.ranking and busy is not None:
                return f"No winner: the machine was too busy, {busy}. Try again when it is quiet."
            if not self.ranking:
                return "No winner: no candidate could be timed."
            return f"No winner: {self.clean_rounds} clean rounds of {self.rounds} are too few to tell."
        trial, measurement = self.winner.trial, self.winner.trial.measurement
        assert measurement is not None
        time = f"{measurement.median_ms:.3g} ms"
        if self.objective == "p95":
            time = f"{measurement.p95_ms:.3g} ms at the 95th percentile ({time} by median)"
        parts = [f"{trial.label}: {time}, {trial.speedup_text}"]
        if trial.evidence == EvidenceRank.HOLDOUT:
            parts[0] += ", by a hold-out comparison on fresh inputs"
        if self.gain is not None:
            parts.append(f"gain over the untuned choice ({self.gain.over}): {self.gain.text}")
        elif self.winner.is_untuned:
            parts.append(f"it is the untuned choice, and {self._rivals_of_untuned(self.winner)}")
        if self.winner.attainable_share is not None:
            parts.append(f"{self.winner.attainable_share:.0%} of the limit of arithmetic and memory traffic here")
        near = [each for each in self.ties if each.place.behind <= margin(self.noise_floor)]
        far = [each for each in self.ties if each not in near]
        if near:
            advantage = "" if self.winner.is_untuned else f", and chosen as the {self._advantage(near)}"
            parts.append(f"tied with {_labels(near)}{advantage}")
        if far:
            parts.append(f"not distinguishable from {_labels(far)} by {self.clean_rounds} clean rounds")
        slower = [each for each in self.ranking if each.place.distinguishable]
        if slower and not self.ties:
            nearest = min(slower, key=lambda each: each.place.behind)
            parts.append(f"the next, {nearest.trial.label}, takes {math.exp(nearest.place.behind):.3g} times as long")
        if len(self.ranking) == 1:
            parts.append("nothing else ran")
        return "; ".join(parts) + "."

    def _rivals_of_untuned(self, untuned: RankedCandidate) -> str:
        """Return why none of the others replaces the untuned choice."""
        if not untuned.place.distinguishable:
            return "nothing is shown to be faster"
        fastest = min((each for each in self.ranking if each.place.tied), key=lambda each: each.place.behind)
        ahead = f"{fastest.trial.label} was {math.expm1(untuned.place.behind):.0%} faster".replace("%", " %")
        if self.processes < MIN_PROCESSES:
            return f"{ahead} in this one process, which may be chance: give it a larger budget"
        return f"{ahead}, which may be chance"

    def _advantage(self, near: Sequence[RankedCandidate]) -> str:
        """Return the advantage of the winner over those that are about as fast."""
        assert self.winner is not None
        if self.confirms:
            return "winner of the comparison before"
        if any(each.rank > self.winner.rank for each in near):
            return "simplest"
        if any(each.num_nondefault > self.winner.num_nondefault for each in near):
            return "nearest to its defaults"
        return "most exact, then smallest in memory, of its rank"


def margin(noise_floor: float) -> float:
    """Return the log ratio by which a simpler candidate may be behind the fastest, and win.

    Not shown to be slower is not enough to win: on a busy host hardly anything is shown.
    """
    return min(max(noise_floor, WORTH_KNOWING), WORTH_FOR_SIMPLICITY)


def noise_floor(control: Sequence[Block], own: Sequence[Block], objective: Objective = "median") -> float:
    """Return how far apart two runs of one candidate may lie, at 95 %; infinite if too few rounds tell."""
    return max(abs(bound) for bound in difference(control, own, objective).interval)


def places(blocks: Sequence[Sequence[Block]], floor: float, objective: Objective = "median") -> list[Place]:
    """Return the place of each candidate, given its blocks.

    The leader has the lowest upper end of the interval of its ratio to the baseline, so that a few lucky blocks lead
    nowhere. Without any such interval every place is unknown.
    """
    upper_ends = [level(each, objective).interval.high for each in blocks]
    if not upper_ends or not math.isfinite(min(upper_ends)):
        return [Place(math.nan, UNKNOWN, distinguishable=False) for _ in blocks]
    leader = upper_ends.index(min(upper_ends))
    confidence = 1 - 0.05 / (LOOKS * max(1, len(blocks) - 1))
    found = []
    for index, own in enumerate(blocks):
        if index == leader:
            found.append(Place(0.0, Interval(0.0, 0.0), distinguishable=False))
            continue
        behind, interval = difference(own, blocks[leader], objective, confidence)
        shown = interval.known and interval.low > 0 and behind > floor
        found.append(Place(behind, interval, distinguishable=shown or is_far(own, blocks[leader], objective)))
    return found


def decided(blocks: Sequence[Sequence[Block]], floor: float, objective: Objective = "median") -> bool:
    """Return whether every candidate is shown to be slower than the leader, or close enough to it.

    Never while one candidate differs from itself by more than that: more rounds may distinguish the others.
    """
    if floor > WORTH_FOR_SIMPLICITY:
        return False
    close = max(floor, WORTH_KNOWING)
    return all(place.distinguishable or place.interval.high <= close for place in places(blocks, floor, objective))


def choose(
    candidates: Sequence[RankedCandidate], floor: float, processes: int, objective: Objective = "median"
) -> RankedCandidate | None:
    """Return the candidate to deploy, or None if the clean rounds name no leader.

    The untuned choice is replaced only by one that is shown to be faster, see `beats`.
    """
    able = [each for each in candidates if each.place.tied]
    untuned = next((each for each in candidates if each.is_untuned), None)
    if able and untuned is not None:
        is_known = untuned.place.interval.known
        if is_known and not untuned.place.distinguishable:
            return untuned
        # Rounds too few for the corrected interval of its place can only show a large difference.
        able = [each for each in able if beats(each, untuned, floor, processes if is_known else 1, objective)]
        if not able:
            return untuned
    return min((each for each in able if each.place.behind <= margin(floor)), key=_preference, default=None)


def beats(
    one: RankedCandidate, untuned: RankedCandidate, floor: float, processes: int, objective: Objective = "median"
) -> bool:
    """Return whether `one` is shown to be faster than the untuned choice: by more than the noise.

    One process cannot show how much processes differ, so that a difference within it has to be large.
    """
    assert one.trial.measurement is not None
    assert untuned.trial.measurement is not None
    blocks = untuned.trial.measurement.blocks, one.trial.measurement.blocks
    gain, interval = difference(*blocks, objective)
    noise = floor if processes >= MIN_PROCESSES else max(floor, NOISE_OF_PROCESSES)
    return (interval.known and interval.low > 0 and gain > noise) or is_far(*blocks, objective)


def is_far(slow: Sequence[Block], fast: Sequence[Block], objective: Objective) -> bool:
    """Return whether one takes much longer than another in each of a few rounds at least."""
    num_rounds = sum(map(len, pairs_of(slow, fast)))
    return num_rounds >= MIN_ROUNDS_OF_LARGE and smallest_ratio(slow, fast, objective) > LARGE_DIFFERENCE


def gain_over_untuned(
    candidates: Sequence[RankedCandidate], winner: RankedCandidate | None, objective: Objective = "median"
) -> Gain | None:
    """Return the gain of `winner` over the untuned choice, paired within the clean rounds of both."""
    untuned = next((each.trial for each in candidates if each.is_untuned), None)
    if winner is None or untuned is None or winner.is_untuned:
        return None
    assert untuned.measurement is not None
    assert winner.trial.measurement is not None
    value, (low, high) = difference(untuned.measurement.blocks, winner.trial.measurement.blocks, objective)
    if math.isnan(value):
        return None
    interval = Interval(math.expm1(low), math.expm1(high)) if math.isfinite(low) else UNKNOWN
    return Gain(untuned.label, math.expm1(value), interval)


def ordered(candidates: Sequence[RankedCandidate], winner: RankedCandidate | None) -> tuple[RankedCandidate, ...]:
    """Return the winner, then the others by time; those of unknown place last."""
    rest = [each for each in candidates if each is not winner]
    rest.sort(key=lambda each: math.inf if math.isnan(each.place.behind) else each.place.behind)
    return tuple(rest) if winner is None else (winner, *rest)


def _labels(candidates: Sequence[RankedCandidate]) -> str:
    """Return the labels of the first few, and the number of the others."""
    labels = [each.trial.label for each in candidates]
    few, rest = labels[:MAX_LABELS], len(labels) - MAX_LABELS
    return ", ".join(few) + (f" and {rest} other{'s' if rest > 1 else ''}" if rest > 0 else "")


def _preference(ranked: RankedCandidate) -> tuple[float, ...]:
    """Return the key that decides a tie, smallest first: rank, defaults, error, memory in steps of a tenth, time."""
    trial = ranked.trial
    assert trial.verdict is not None
    assert trial.measurement is not None
    memory = trial.measurement.peak_bytes
    step = math.inf if memory is None else round(math.log(max(memory, 1)) / math.log(1.1))
    return (ranked.rank, ranked.num_nondefault, trial.verdict.worst, step, ranked.place.behind)
