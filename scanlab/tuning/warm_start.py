"""What was best on problems like the one at hand: a search of another size begins with it."""

from __future__ import annotations

import math
from collections.abc import Iterable

from scanlab.bench.records import Trial, log_ratio
from scanlab.contract.backend import Backend
from scanlab.contract.machine import Machine
from scanlab.contract.problem import SIZES, ScanProblem
from scanlab.contract.space import Config, config_key

# So many are tried first, those of the nearest problems.
MOST_HINTS = 3


def winners_on_alike(
    trials: Iterable[Trial], backend: Backend, problem: ScanProblem, here: Machine
) -> tuple[Config, ...]:
    """The fastest recorded configurations of `backend` here on problems that differ in nothing but sizes.

    Those on the nearest problem first.
    """
    best: dict[ScanProblem, Trial] = {}
    for trial in trials:
        same = (trial.backend, trial.source_hash, trial.machine.silicon_id) == (
            backend.name,
            backend.source_hash,
            here.silicon_id,
        )
        kin = kind_of(trial.problem) == kind_of(problem) and trial.problem != problem
        if same and kin and trial.state == "ok" and trial.phase == "search":
            best[trial.problem] = min(trial, best.get(trial.problem, trial), key=log_ratio)
    nearest = sorted(best, key=lambda other: size_distance(other, problem))
    winners = {config_key(best[other].config): best[other].config for other in nearest}
    return tuple(winners.values())[:MOST_HINTS]


def kind_of(problem: ScanProblem) -> ScanProblem:
    """What all problems that differ in nothing but sizes have in common."""
    return problem.replace(**dict.fromkeys(SIZES, 1))


def size_distance(one: ScanProblem, other: ScanProblem) -> float:
    """The sum over the sizes of the absolute log ratio, so that twice and half are as far."""
    return sum(abs(math.log(getattr(one, size) / getattr(other, size))) for size in SIZES)
