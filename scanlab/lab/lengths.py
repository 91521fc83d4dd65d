"""Time against sequence length: one configuration of each backend over a row of lengths, within a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from scanlab.lab.prove import Setting
from scanlab.lab.race import Entrant, race
from scanlab.lab.results import Results, Trial
from scanlab.problem import ScanProblem, make_inputs
from scanlab.space import Value

# Each is a race of its own on drawn inputs, because no model produces every length.
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)


def sweep(
    problem: ScanProblem,
    entrants: Sequence[Entrant],
    anchor: Entrant,
    results: Results,
    deadline: float,
    seed: int = 0,
    lengths: Sequence[int] = LENGTHS,
    on_length: Callable[[int], None] = lambda length: None,
) -> tuple[Trial, ...]:
    """Time `entrants` at each length of `problem` in turn, shortest first, until `deadline` (of time.monotonic()).

    An entrant whose next length is not expected to fit, or whose configuration is not legal for it, stops there:
    a line in the plot ends where there was no time, it is never guessed. Every trial is proved, and appended to
    `results` in the phase "lengths".
    """
    taken: list[Trial] = []
    spent_s: dict[str, float] = {}
    running = list(entrants)
    for index, length in enumerate(lengths):
        longer = problem.replace(length=length)
        running = [each for each in running if each.backend.space.forbids(_full(each), longer) is None]
        growth = 1.0 if index == 0 else length / lengths[index - 1]
        left_s = deadline - time.monotonic()
        # The cheapest first, so that a slow entrant does not take the time of those that have lines to draw.
        running.sort(key=lambda each: spent_s.get(each.backend.name, 0.0))
        fitting, needed_s = [], spent_s.get("oracle", 0.0) * growth
        for each in running:
            needed_s += spent_s.get(each.backend.name, 0.0) * growth
            if needed_s <= left_s:
                fitting.append(each)
        running = fitting
        if not running or left_s <= 0:
            break
        on_length(length)
        started = time.monotonic()
        setting = Setting.of(longer, make_inputs(longer, seed), f"drawn, seed {seed}", seed)
        spent_s["oracle"] = time.monotonic() - started
        share_s = (deadline - time.monotonic()) / (len(lengths) - index)
        trials = race(running, anchor, setting, results, time.monotonic() + share_s, phase="lengths").trials
        for trial in trials:
            spent_s[trial.backend] = trial.duration_s
        taken.extend(trials)
        wrong = {trial.backend for trial in trials if trial.state != "ok"}
        running = [each for each in running if each.backend.name not in wrong]
    return tuple(taken)


def _full(entrant: Entrant) -> dict[str, Value]:
    return entrant.backend.space.defaults | dict(entrant.config)
