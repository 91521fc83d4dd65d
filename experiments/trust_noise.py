"""Comparisons of one configuration with itself, for the claim that no difference is invented."""

import dataclasses
import random
import time
from collections.abc import Sequence
from pathlib import Path

from trust_claim import Claim

from scanlab.bench.clock import MeasuringClock, QuietWait
from scanlab.bench.compare import MAX_ROUNDS, MIN_ROUNDS, Comparer
from scanlab.bench.context import BenchmarkContext, Candidate
from scanlab.bench.ranking import decided, noise_floor, places
from scanlab.bench.samples import Block
from scanlab.bench.samples import clean as clean_blocks
from scanlab.bench.store import TrialStore
from scanlab.bench.worker import LocalWorker
from scanlab.contract import registry
from scanlab.contract.problem import ScanProblem, make_inputs

SMALL = ScanProblem(batch=1, dim=64, length=64)
TWINS = ("chunked", "two_phase")
COMPARISON_S, NOISE_S = 4.0, 12.0
ALLOWED_SHARE = 0.05


def comparer_of(candidate: Candidate, folder: Path) -> Comparer:
    """Return a comparer of candidates of this process on the small problem."""
    context = BenchmarkContext.of(SMALL, make_inputs(SMALL), "made", seed=0)
    clock = MeasuringClock()
    worker = LocalWorker(context)
    worker.prepare(candidate)
    return Comparer(context, worker, TrialStore(folder), clock, QuietWait(COMPARISON_S, clock, worker.disturbance))


def copies(name: str, count: int) -> list[Candidate]:
    """Return one configuration under several names."""
    backend = registry.get(name)
    named = [dataclasses.replace(backend, name=f"{name}_{number}") for number in range(count)]
    return [Candidate(each, backend.space.defaults | {"threads": 1}) for each in named]


def comparisons_run(count: int, folder: Path) -> Claim:
    """Compare one configuration with itself; a difference that is reported is invented."""
    started, invented, rounds = time.monotonic(), 0, 0
    for number in range(count):
        twins = copies(TWINS[number % len(TWINS)], 2)
        outcome = comparer_of(twins[0], folder).compare(twins, COMPARISON_S)
        invented += any(each.place.distinguishable for each in outcome.ranking)
        rounds += outcome.clean_rounds
    about = f"{rounds / max(1, count):.0f} clean rounds each on average"
    allowed = int(ALLOWED_SHARE * count)
    return Claim("comparisons with itself; differences", count, invented, allowed, time.monotonic() - started, about)


def comparisons_drawn(count: int) -> Claim:
    """Draw comparisons of one configuration with itself from long recorded rounds of three that are alike.

    Each takes consecutive rounds from a random one on, and the roles of the three are random: a drift or a difference
    apart in the record does so in the comparison.
    """
    started = time.monotonic()
    noise = [recorded_noise(name) for name in TWINS]
    invented = sum(differs(noise[number % len(noise)], random.Random(number)) for number in range(count))
    rounds, clean = ([len(take(series[0])) for series in noise] for take in (list, clean_blocks))
    about = f"from {sum(rounds)} recorded rounds of two configurations, {sum(clean)} of them clean"
    allowed = int(ALLOWED_SHARE * count)
    return Claim(
        "comparisons drawn from noise; differences", count, invented, allowed, time.monotonic() - started, about
    )


def recorded_noise(name: str) -> list[list[Block]]:
    """Return the blocks of three copies of one configuration, in rounds for NOISE_S."""
    worker = LocalWorker(BenchmarkContext.of(SMALL, make_inputs(SMALL), "made", seed=0))
    candidates = copies(name, 3)
    for each in candidates:
        worker.prepare(each)
    until, rounds = time.monotonic() + NOISE_S, []
    while not rounds or time.monotonic() < until:
        rounds.append(worker.take_round(candidates, candidates[0], len(rounds)))
    return [list(series) for series in zip(*rounds, strict=True)]


def differs(noise: Sequence[Sequence[Block]], rng: random.Random) -> bool:
    """Return whether a comparison out of `noise`, as long as it takes to decide, shows a difference."""
    series = list(noise)
    rng.shuffle(series)
    total = len(series[0])
    first = rng.randrange(total)
    order = [(first + step) % total for step in range(min(MAX_ROUNDS, total))]
    shown = False
    for rounds in range(min(MIN_ROUNDS, total), len(order) + 1):
        one, other, control = (numbered([blocks[index] for index in order[:rounds]]) for blocks in series)
        floor = noise_floor(control, one)
        shown = any(place.distinguishable for place in places([one, other], floor))
        if decided([one, other], floor):
            break
    return shown


def numbered(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Return the blocks with their positions as their rounds."""
    return tuple(dataclasses.replace(block, round=number) for number, block in enumerate(blocks))
