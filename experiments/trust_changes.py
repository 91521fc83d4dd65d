"""Tunings of a made-up machine that changes while it measures, in ways that no counter of the system shows."""

import itertools
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from trust_claim import Claim
from trust_noise import SMALL
from trust_simulated import BUDGET_S, backend

from scanlab.bench.clock import MeasuringClock
from scanlab.bench.context import Candidate
from scanlab.bench.samples import Block
from scanlab.bench.simulated_worker import SAMPLES, SimulatedTime, SimulatedWorker
from scanlab.bench.store import TrialStore
from scanlab.contract.problem import make_inputs
from scanlab.tuning.scheduler import COMPARISON_SHARE, SEARCH_SHARE, Budget
from scanlab.tuning.tune import tune

# The fastest is faster than the defaults by this where there is such a one, as for every other seed.
GAIN = 1.1
# A choice that is slower than the defaults by more than this is wrong.
TOLERATED = 1.03
SAMPLE_S = 2e-3
COMPARED_S, HELD_S = SEARCH_SHARE * BUDGET_S, (SEARCH_SHARE + COMPARISON_SHARE) * BUDGET_S


class Moment(NamedTuple):
    """Circumstances of a sample."""

    second: float
    process: int
    candidate: Candidate
    before: Candidate | None
    rng: random.Random


def by_chance(share: float, factor: float, rng: random.Random) -> float:
    """Return `factor` in this share of the cases, else 1."""
    return factor if rng.random() < share else 1.0


def luck(moment: Moment) -> float:
    """Return the factor of a candidate in a process, where memory lies elsewhere than in another."""
    return math.exp(random.Random(f"{moment.process} {moment.candidate.label}").gauss(0, 0.03))


# By how much a sample takes longer.
CHANGES: dict[str, Callable[[Moment], float]] = {
    "slows down steadily": lambda at: 1 + at.second / BUDGET_S,
    "heats up": lambda at: 1.5 - 0.5 * math.exp(-at.second / 4),
    "has slow phases": lambda at: by_chance(0.5, 1.6, random.Random(int(at.second / 0.37))),
    "pauses": lambda at: by_chance(0.002, 500.0, at.rng),
    "is slow after one of the candidates": lambda at: 1.4 if at.before and at.before.config.get("chunk") == 8 else 1.0,
    "has a neighbour in the comparison alone": lambda at: by_chance(
        0.5 if COMPARED_S < at.second < HELD_S else 0, 2.5, at.rng
    ),
    "has a neighbour in the hold-out alone": lambda at: by_chance(0.5 if at.second > HELD_S else 0, 2.5, at.rng),
    "differs from process to process": luck,
}


class ChangingWorker(SimulatedWorker):
    """Worker whose samples alternate at random, as real ones do, while time goes on."""

    start_s = 1.5

    def __init__(self, clock: SimulatedTime, change: Callable[[Moment], float], chosen: Candidate, seed: int) -> None:
        super().__init__(clock, self._sample_of, seed=seed)
        self._clock = clock
        self._change = change
        self._chosen = chosen
        self._before: Candidate | None = None

    def _sample_of(self, candidate: Candidate, rng: random.Random) -> float:
        moment = Moment(self._clock.seconds, self._process, candidate, self._before, rng)
        self._before = candidate
        return 1e6 * true_ms(candidate, self._chosen) * self._change(moment) * (1 + abs(rng.gauss(0, 0.015)))

    def take_round(self, candidates: Sequence[Candidate], baseline: Candidate, number: int) -> tuple[Block, ...]:
        """Take a round in which time goes on from sample to sample."""
        everyone = [*candidates, baseline]
        schedule = [position for position in range(len(everyone)) for _ in range(SAMPLES)]
        self._rng.shuffle(schedule)
        taken: dict[int, list[int]] = defaultdict(list)
        for position in schedule:
            ns = round(self._sample_of(everyone[position], self._rng))
            self._clock.seconds += max(SAMPLE_S, ns / 1e9)
            taken[position].append(ns)
        beside = tuple(taken[len(candidates)])
        return tuple(
            Block(tuple(taken[position]), beside, "", round=number, process=self._process)
            for position in range(len(candidates))
        )


def true_ms(candidate: Candidate, fastest: Candidate) -> float:
    """Return the time of a candidate without any disturbance: 1 for the defaults, and more for the others but one."""
    if candidate.backend.name == "reference":
        return 40.0
    if candidate == fastest:
        return 1.0 if candidate.is_default else 1.0 / GAIN
    if candidate.is_default:
        return 1.0
    return 1.0 + random.Random(candidate.label).uniform(0.05, 0.3)


def changing(tunings: int, folder: Path) -> Claim:
    """Tune while the machine changes; no choice may be slower than the defaults."""
    started, wrong, found, able = time.monotonic(), 0, 0, 0
    tuned = backend()
    untuned = Candidate(tuned, tuned.space.defaults)
    others = [Candidate(tuned, config) for config in tuned.space.configs(SMALL) if config != tuned.space.defaults]
    for seed, name in zip(range(tunings), itertools.cycle(CHANGES), strict=False):
        fastest = random.Random(seed).choice(others) if seed // len(CHANGES) % 2 else untuned
        clock = SimulatedTime()
        worker = ChangingWorker(clock, CHANGES[name], fastest, seed)
        result = tune(
            SMALL,
            make_inputs(SMALL),
            [tuned],
            Budget(BUDGET_S),
            TrialStore(folder / str(seed)),
            untuned=untuned,
            seed=seed,
            clock=MeasuringClock(clock),
            open_worker=worker.open,
        )
        chosen = untuned if result.winner is None else Candidate(tuned, result.winner.config)
        wrong += true_ms(chosen, fastest) > TOLERATED * true_ms(untuned, fastest)
        able += fastest != untuned
        found += chosen == fastest != untuned
    about = (
        f"{len(CHANGES)} kinds of machines: one that {', '.join(CHANGES)}; "
        f"of {able} with a choice faster than the defaults by {GAIN - 1:.0%}, {found} chose it"
    )
    name = "tunings while the machine changes unseen; a choice slower than the defaults"
    return Claim(name, tunings, wrong, 0, time.monotonic() - started, about)
