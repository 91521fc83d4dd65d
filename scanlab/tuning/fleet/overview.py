"""Overview of the machines that share a storage: the results of each kind, and choices to adopt from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from optuna.storages import BaseStorage

from scanlab.bench.context import BenchmarkContext
from scanlab.bench.ranking import Comparison
from scanlab.bench.records import RecordError, Trial, decode, log_ratio
from scanlab.contract.base import Problem
from scanlab.contract.machine import Machine
from scanlab.tuning.fleet.study_summary import StudySummary, summarize_studies
from scanlab.tuning.fleet.trial_queue import TrialQueue


@dataclass(frozen=True)
class MachineSummary:
    """One kind of machine: all machines with the same silicon.

    Attributes:
        machine: As one of them described itself.
        num_workers: Number of processes that took part.
        num_working: Number of processes that evaluate something now.
        num_tried: Number of configurations with a record, over all problems and backends.
        num_configurations: Number of legal configurations; None if a space is too large to tell.
        heard_at: Time of the last heartbeat in seconds since the epoch.
    """

    machine: Machine
    num_workers: int
    num_working: int
    num_tried: int
    num_configurations: int | None
    heard_at: float | None


@dataclass(frozen=True)
class BestTrial:
    """The best trial of one kind of machine for one problem; `why` is None if it was searched and not compared."""

    trial: Trial
    why: str | None


@dataclass(frozen=True)
class FleetOverview:
    """Content of a shared storage.

    Attributes:
        machines: Kinds of machines, in the order in which they came.
        best: One for each problem and kind of machine, in the order in which they came.
        trials: Every record that travels with the studies.
        notices: Storages that could not be read, with reasons.
    """

    machines: tuple[MachineSummary, ...]
    best: tuple[BestTrial, ...]
    trials: tuple[Trial, ...]
    notices: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Problems that were tuned on any machine."""
        return tuple(dict.fromkeys(each.trial.problem for each in self.best))

    def best_on(self, silicon_id: str, problem: Problem) -> BestTrial | None:
        """Return the best trial of one kind of machine for `problem`, if any."""
        for each in self.best:
            if (each.trial.machine.silicon_id, each.trial.problem) == (silicon_id, problem):
                return each
        return None

    def best_for(self, here: Machine, problem: Problem, fits: Callable[[Trial], bool]) -> BestTrial | None:
        """Return the choice for `problem` on `here`: the best of its own kind, or else of the nearest machine.

        Args:
            here: The machine that asks.
            problem: The problem that it has.
            fits: Whether a configuration can run on `here`. If the best of the nearest machine cannot, the fastest of
                its other configurations that can is taken; if none can, the next machine's.
        """
        machines = sorted((each.machine for each in self.machines), key=lambda one: here.silicon.distance(one.silicon))
        for silicon_id in dict.fromkeys(machine.silicon_id for machine in machines):
            best = self.best_on(silicon_id, problem)
            if best is None:
                continue
            others = [trial for trial in self.trials if _is_timed(trial, silicon_id, problem)]
            for one in (best, *(BestTrial(trial, None) for trial in sorted(others, key=log_ratio))):
                if fits(one.trial):
                    return one
        return None


def fleet_overview(storage: BaseStorage) -> FleetOverview:
    """Return the state in `storage` of every machine that used it."""
    studies, unreadable = summarize_studies(storage)
    found: dict[str, Trial] = {}
    reasons: dict[str, str] = {}
    notices = list(unreadable)
    for line, why in (each for study in studies for each in study.lines):
        try:
            trial = decode(line.encode())
        except RecordError as error:
            notices.append(f"a record in the storage was skipped: {error}")
            continue
        found[trial.id] = trial
        if why is not None:
            reasons[trial.id] = why
    trials = sorted(found.values(), key=lambda trial: trial.started_at)
    kinds = dict.fromkeys((trial.problem, trial.machine.silicon_id) for trial in trials)
    best = (_best([trial for trial in trials if _is_timed(trial, id_, problem)], reasons) for problem, id_ in kinds)
    return FleetOverview(
        _machine_summaries(studies), tuple(each for each in best if each is not None), tuple(trials), tuple(notices)
    )


def publish(outcome: Comparison, context: BenchmarkContext, storage: BaseStorage) -> None:
    """Write the outcome of a comparison into the study of this kind of machine and this problem."""
    machine, problem = context.machine, context.problem
    facts = {
        "kind": "finals",
        "op": problem.op,
        "problem": problem.key,
        "inputs": context.inputs_label,
        "machine": machine.to_json(),
    }
    name = f"finals {problem.op} {problem.key} {context.inputs_label} {machine.silicon_id}-{machine.software_id}"
    trials = [each.trial for each in outcome.ranking]
    TrialQueue(storage, name, facts, (), carries_records=True).publish(trials, outcome.why)


def _is_timed(trial: Trial, silicon_id: str, problem: Problem) -> bool:
    return trial.state == "ok" and (trial.machine.silicon_id, trial.problem) == (silicon_id, problem)


def _best(timed: Sequence[Trial], reasons: dict[str, str]) -> BestTrial | None:
    """Return the winner of the newest comparison, or else the fastest of the search."""
    winners = [trial for trial in timed if trial.id in reasons]
    if winners:
        newest = max(winners, key=lambda trial: trial.started_at)
        return BestTrial(newest, reasons[newest.id])
    return BestTrial(min(timed, key=log_ratio), None) if timed else None


def _machine_summaries(studies: Iterable[StudySummary]) -> tuple[MachineSummary, ...]:
    kinds: dict[str, list[StudySummary]] = {}
    for study in studies:
        kinds.setdefault(study.facts.machine.silicon_id, []).append(study)
    return tuple(_machine_summary(own) for own in kinds.values())


def _machine_summary(studies: Sequence[StudySummary]) -> MachineSummary:
    searches = [study for study in studies if study.facts.kind == "search"]
    sizes = [study.facts.configurations for study in searches]
    return MachineSummary(
        machine=studies[0].facts.machine,
        num_workers=len(frozenset[str]().union(*(study.workers for study in studies))),
        num_working=len(frozenset[str]().union(*(study.working for study in studies))),
        num_tried=sum(study.num_tried for study in searches),
        num_configurations=None if None in sizes else sum(filter(None, sizes)),
        heard_at=max((study.heard_at for study in studies if study.heard_at is not None), default=None),
    )
