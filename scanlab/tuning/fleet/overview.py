"""Many machines that share a storage: what each kind of machine has found, and what that says to the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from optuna.storages import BaseStorage

from scanlab.bench.prove import Setting
from scanlab.bench.ranking import Race
from scanlab.bench.records import Trial, decoded, log_ratio
from scanlab.contract.machine import Machine
from scanlab.contract.problem import ScanProblem
from scanlab.contract.space import Config, config_key
from scanlab.tuning.fleet.ledger import Ledger, Study, survey
from scanlab.tuning.nearest_machine import distance

# So many winners of other machines are tried first: those of the nearest kin.
MOST_HINTS = 3


@dataclass(frozen=True)
class Station:
    """One kind of machine: the machines that have the same silicon, as one of them described itself.

    workers         processes that took part, and those that work on something now
    tried           configurations with a record, over all problems and backends, and how many there are; None where
                    a space is too large to tell
    heard_at        the last sign of life, in seconds since the epoch
    """

    machine: Machine
    workers: int
    working: int
    tried: int
    configurations: int | None
    heard_at: float | None


@dataclass(frozen=True)
class Best:
    """The best that one kind of machine knows for one problem; `why` is None where it was searched and not raced."""

    trial: Trial
    why: str | None


@dataclass(frozen=True)
class Fleet:
    """What a shared storage says.

    best    for every problem and kind of machine; problems and machines in the order they came
    trials  every record that travels with the studies
    """

    stations: tuple[Station, ...]
    best: tuple[Best, ...]
    trials: tuple[Trial, ...]

    @property
    def problems(self) -> tuple[ScanProblem, ...]:
        """What has been tuned somewhere."""
        return tuple(dict.fromkeys(each.trial.problem for each in self.best))

    def best_on(self, silicon_id: str, problem: ScanProblem) -> Best | None:
        """What that kind of machine knows for `problem`."""
        for each in self.best:
            if (each.trial.machine.silicon_id, each.trial.problem) == (silicon_id, problem):
                return each
        return None

    def choice_for(self, here: Machine, problem: ScanProblem, fits: Callable[[Trial], bool]) -> Best | None:
        """What to run on `here`: its own kind's best for `problem`, or else that of its nearest kin.

        `fits` says whether a configuration can run here. Where the best of the nearest kin cannot, the fastest of
        its other configurations that can is taken, and where none can, the next kin's.
        """
        machines = sorted(
            (station.machine for station in self.stations), key=lambda one: distance(one.silicon, here.silicon)
        )
        for silicon_id in dict.fromkeys(machine.silicon_id for machine in machines):
            best = self.best_on(silicon_id, problem)
            if best is None:
                continue
            others = [trial for trial in self.trials if _is_timed(trial, silicon_id, problem)]
            for one in (best, *(Best(trial, None) for trial in sorted(others, key=log_ratio))):
                if fits(one.trial):
                    return one
        return None


def fleet_of(storage: BaseStorage) -> Fleet:
    """What `storage` says of every machine that used it."""
    studies = survey(storage, lambda facts: True)
    lines = [line for study in studies for line in study.lines]
    found = [(trial, why) for line, why in lines if (trial := decoded(line.encode())) is not None]
    trials = sorted({trial.id: trial for trial, _ in found}.values(), key=lambda trial: trial.started_at)
    raced = {trial.id: why for trial, why in found if why is not None}
    kinds = dict.fromkeys((trial.problem, trial.machine.silicon_id) for trial in trials)
    bests = (_best([trial for trial in trials if _is_timed(trial, id_, problem)], raced) for problem, id_ in kinds)
    return Fleet(_stations(studies), tuple(best for best in bests if best is not None), tuple(trials))


def publish(outcome: Race, setting: Setting, storage: BaseStorage) -> None:
    """Write the outcome of a race into the study of this kind of machine and this problem."""
    machine, problem = setting.machine, setting.problem
    facts = {
        "kind": "finals",
        "problem": problem.key,
        "inputs": setting.inputs_label,
        "machine": machine.to_json(),
    }
    name = f"finals {problem.key} {setting.inputs_label} {machine.silicon_id}-{machine.software_id}"
    trials = [standing.trial for standing in outcome.standings]
    Ledger(storage, name, facts, (), carries=True).publish(trials, outcome.why)


def winners_of(searched: Iterable[Study], backend: str, here: Machine) -> tuple[Config, ...]:
    """The winners of `backend` in other studies of a problem, those of the nearest kin first."""
    of_backend = [study for study in searched if study.facts["backend"] == backend and study.best is not None]
    nearest = sorted(of_backend, key=lambda study: distance(_machine(study).silicon, here.silicon))
    winners = {config_key(study.best): study.best for study in nearest if study.best is not None}
    return tuple(winners.values())[:MOST_HINTS]


def _is_timed(trial: Trial, silicon_id: str, problem: ScanProblem) -> bool:
    return trial.state == "ok" and (trial.machine.silicon_id, trial.problem) == (silicon_id, problem)


def _best(timed: Sequence[Trial], raced: dict[str, str]) -> Best | None:
    """The winner of the newest race, or without a race the fastest of the search."""
    winners = [trial for trial in timed if trial.id in raced]
    if winners:
        newest = max(winners, key=lambda trial: trial.started_at)
        return Best(newest, raced[newest.id])
    return Best(min(timed, key=log_ratio), None) if timed else None


def _stations(studies: Iterable[Study]) -> tuple[Station, ...]:
    kinds: dict[str, list[Study]] = {}
    for study in studies:
        kinds.setdefault(_machine(study).silicon_id, []).append(study)
    return tuple(_station(own) for own in kinds.values())


def _station(studies: Sequence[Study]) -> Station:
    searches = [study for study in studies if study.facts["kind"] == "search"]
    sizes = [study.facts["configurations"] for study in searches]
    heard = [study.heard_at for study in studies if study.heard_at is not None]
    return Station(
        machine=_machine(studies[0]),
        workers=len(frozenset[str]().union(*(study.workers for study in studies))),
        working=len(frozenset[str]().union(*(study.working for study in studies))),
        tried=sum(study.tried for study in searches),
        configurations=None if None in sizes else sum(sizes),
        heard_at=max(heard, default=None),
    )


def _machine(study: Study) -> Machine:
    return Machine.from_json(study.facts["machine"])
