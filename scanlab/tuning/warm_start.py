"""Warm start: the baseline of earlier trials, and configurations that won on similar problems or near machines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scanlab.bench.context import BenchmarkContext, Candidate
from scanlab.bench.records import Trial, log_ratio
from scanlab.contract.backend import Backend
from scanlab.contract.base import Problem
from scanlab.contract.machine import Machine
from scanlab.contract.space import Config, config_key
from scanlab.tuning.fleet.study_summary import StudySummary

# Number of winners that are tried first.
MAX_HINTS = 3


def recorded_baseline(
    context: BenchmarkContext, defaults: Iterable[Candidate], recorded: Sequence[Trial]
) -> Candidate | None:
    """Return the default that earlier trials of this context were timed beside, so that they stay comparable."""
    machine = context.machine
    for trial in sorted(recorded, key=lambda each: each.started_at, reverse=True):
        same = (
            trial.machine.silicon_id == machine.silicon_id
            and trial.machine.software_id == machine.software_id
            and (trial.problem, trial.inputs_label, trial.phase) == (context.problem, context.inputs_label, "search")
        )
        if same and trial.measurement is not None:
            for candidate in defaults:
                source = candidate.backend.source_hash
                if (trial.baseline_label, trial.measurement.baseline_source_hash) == (candidate.label, source):
                    return candidate
    return None


def winners_on_similar_problems(
    trials: Iterable[Trial], backend: Backend, problem: Problem, here: Machine
) -> tuple[Config, ...]:
    """Return the fastest recorded configurations of `backend` on problems that differ from `problem` in sizes only.

    Args:
        trials: Records; those of other machines and of other sources of `backend` are left out.
        backend: The backend that is tuned.
        problem: Left out itself.
        here: The machine that is tuned.

    Returns:
        At most MAX_HINTS configurations, those of the nearest problem first.
    """
    best: dict[Problem, Trial] = {}
    for trial in trials:
        is_same = (trial.backend, trial.source_hash, trial.machine.silicon_id) == (
            backend.name,
            backend.source_hash,
            here.silicon_id,
        )
        is_similar = trial.problem.family == problem.family and trial.problem != problem
        if is_same and is_similar and trial.state == "ok" and trial.phase == "search":
            best[trial.problem] = min(trial, best.get(trial.problem, trial), key=log_ratio)
    nearest = sorted(best, key=lambda other: problem.distance(other))
    return _first_distinct(best[other].config for other in nearest)


def winners_on_nearest_machines(studies: Iterable[StudySummary], backend: str, here: Machine) -> tuple[Config, ...]:
    """Return the winners of `backend` on other machines, those of the nearest machine first.

    Args:
        studies: Searches of one problem.
        backend: Name of the backend.
        here: The machine that is tuned.
    """
    nearest = sorted(
        (study for study in studies if study.facts.backend == backend),
        key=lambda study: here.silicon.distance(study.facts.machine.silicon),
    )
    return _first_distinct(study.best for study in nearest if study.best is not None)


def _first_distinct(configs: Iterable[Config]) -> tuple[Config, ...]:
    """Return the first MAX_HINTS different configurations."""
    return tuple({config_key(config): config for config in configs}.values())[:MAX_HINTS]
