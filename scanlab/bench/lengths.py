"""Time against sequence length: one configuration of each backend over a row of lengths, within a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from scanlab.bench.compare import race
from scanlab.bench.prove import Setting
from scanlab.bench.records import Trial
from scanlab.bench.store import TrialStore
from scanlab.bench.worker import Entrant
from scanlab.contract.problem import ScanProblem, make_inputs

# Each is a race of its own on drawn inputs, because no model produces every length.
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
# Calls that an entrant needs in a race at least: it is proved, tried out, and timed in a few rounds.
FEWEST_CALLS = 16


def sweep(
    problem: ScanProblem,
    entrants: Sequence[Entrant],
    anchor: Entrant,
    results: TrialStore,
    deadline: float,
    seed: int = 0,
    lengths: Sequence[int] = LENGTHS,
    on_length: Callable[[int], None] = lambda length: None,
) -> tuple[Trial, ...]:
    """Time `entrants` at each length of `problem` in turn, shortest first, until `deadline` (of time.monotonic()).

    An entrant whose next length is not expected to fit, or whose configuration is not legal for it, stops there:
    a line in the plot ends where there was no time, it is never guessed. The fastest are kept longest. Every
    trial is proved, and appended to `results` in the phase "lengths".
    """
    taken: list[Trial] = []
    call_s: dict[str, float] = {}
    oracle_s = 0.0
    running = list(entrants)
    for index, length in enumerate(lengths):
        longer = problem.replace(length=length)
        growth = 1.0 if index == 0 else length / lengths[index - 1]
        left_s = deadline - time.monotonic() - growth * oracle_s
        fitting, needed_s = [], 0.0
        for each in sorted(running, key=lambda each: call_s.get(each.backend.name, 0.0)):
            needed_s += FEWEST_CALLS * growth * call_s.get(each.backend.name, 0.0)
            legal = each.backend.space.forbids(each.backend.space.defaults | dict(each.config), longer) is None
            if legal and needed_s <= left_s:
                fitting.append(each)
        running = fitting
        if not running or left_s <= 0:
            break
        on_length(length)
        started = time.monotonic()
        setting = Setting.of(longer, make_inputs(longer, seed), f"drawn, seed {seed}", seed)
        oracle_s = time.monotonic() - started
        share_s = (deadline - time.monotonic()) / (len(lengths) - index)
        trials = race(running, anchor, setting, results, time.monotonic() + share_s, phase="lengths").trials
        call_s = {each.backend: each.measurement.median_ms / 1e3 for each in trials if each.measurement is not None}
        running = [each for each in running if each.backend.name in call_s]
        taken.extend(trials)
    return tuple(taken)
