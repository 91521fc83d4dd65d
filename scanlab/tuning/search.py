"""The search of one backend's space: what to try next, by what is recorded.

The records are the truth. The queue says who works on what, and holds nothing that could not be told to it
again, so that a storage that is lost or damaged costs nothing but its history of attempts that a crash cut short.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from scanlab.bench.prove import Proven, Setting
from scanlab.bench.records import RecordError, Trial, decode, error_of, log_ratio
from scanlab.bench.store import TrialStore
from scanlab.contract.backend import Backend
from scanlab.contract.space import Config, Value, config_key
from scanlab.errors import ConfigError
from scanlab.tuning.fleet.storage import quiet_optuna
from scanlab.tuning.fleet.trial_queue import Lease, TrialQueue

# Up to this many legal configurations a search may try every one of them, where there is time for that.
EXHAUSTIVE_SIZE = 256
# A sampler that proposes only what cannot be tried, so many times in a row, has nothing left to say.
MOST_REPEATS = 40
# A configuration during which a process has died this often is taken to be the cause.
MOST_DEATHS = 3


class Search:
    """The search of one backend's space for the fastest configuration in one setting.

    best       the fastest trial so far whose error is at most `max_error`
    best_scan  its scan, where this process built it
    lethal     configurations during which processes died too often, and nothing is recorded of
    waiting    whether all that is left to try was in the hands of others when this search was last asked
    """

    def __init__(
        self,
        backend: Backend,
        setting: Setting,
        anchor: Proven,
        recorded: Sequence[Trial],
        storage: BaseStorage,
        results: TrialStore,
        max_error: float = math.inf,
        carries: bool = False,
        hints: Iterable[Config] = (),
    ) -> None:
        """`carries`: see TrialQueue; `hints`: what is worth trying first, the winners of other machines and sizes."""
        self.backend = backend
        self.problem = setting.problem
        self.max_error = max_error
        self.best: Trial | None = None
        self.best_scan: Proven | None = None
        self.lethal: list[Config] = []
        self.waiting = False
        self._results = results
        self._records: dict[str, Trial] = {}
        self._leases: dict[str, Lease] = {}
        self._leased: frozenset[str] = frozenset()
        self._known: set[str] = set()
        self._is_ours = partial(_is_of, backend, setting, anchor)
        self._durations_s = [trial.duration_s for trial in recorded if self._is_ours(trial)]
        legal = list(itertools.islice(backend.space.configs(setting.problem), EXHAUSTIVE_SIZE + 1))
        self._legal = {config_key(each): each for each in legal} if len(legal) <= EXHAUSTIVE_SIZE else None
        self._first = [backend.space.defaults, *filter(self._is_legal, hints)]
        self._random = random.Random(setting.seed)
        with quiet_optuna():
            self._sampler = TPESampler(seed=setting.seed, group=True)
        facts = {
            "kind": "search",
            "backend": backend.name,
            "problem": setting.problem.key,
            "inputs": setting.inputs_label,
            "machine": setting.machine.to_json(),
            "configurations": None if self._legal is None else len(self._legal),
        }
        name = study_name(backend, setting, anchor)
        self._queue = TrialQueue(storage, name, facts, backend.space.tunables, carries)
        self._absorb(recorded)
        self._learn()
        for trial in self.trials:
            if trial.id not in self._known:
                self._queue.add(trial)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """What is recorded of this search, from this process and others."""
        return tuple(self._records.values())

    @property
    def spent_s(self) -> float:
        """What has been spent on it, by this process and others."""
        return sum(trial.duration_s for trial in self._records.values())

    @property
    def left(self) -> int | None:
        """How many legal configurations have not been tried; None where the space is too large to tell."""
        return None if self._legal is None else len(self._legal.keys() - self._records.keys())

    @property
    def rebuild_s(self) -> float:
        """What building a tried configuration again takes, in any process: the shortest of the builds so far.

        The first one compiles; after that libraries and generated code lie on disk.
        """
        timed = [trial.measurement for trial in self.trials if trial.measurement is not None]
        return min(((each.build_ms + each.first_call_ms) / 1e3 for each in timed), default=0.0)

    @property
    def expected_s(self) -> float | None:
        """What the next attempt will take, by the last few and a margin; None before the first."""
        return 1.5 * statistics.median(self._durations_s[-5:]) if self._durations_s else None

    def ask(self, available_s: float) -> dict[str, Value] | None:
        """The next configuration to try, which no other process tries; None where there is none.

        Every configuration is tried where `available_s` suffices for that, and otherwise TPE chooses.
        """
        for _ in range(MOST_REPEATS):
            self._learn()
            config = self._next(available_s)
            self.waiting = config is None and bool(self._leased)
            if config is None:
                return None
            lease = self._queue.lease(config)
            if lease is not None:
                self._leases[config_key(config)] = lease
                return config
        return None

    def tell(self, trial: Trial, scan: Proven | None) -> None:
        """Take in the record of a configuration that was asked for."""
        self._durations_s.append(trial.duration_s)
        self._keep(trial)
        if self.best is trial:
            self.best_scan = scan
        self._leases.pop(config_key(trial.config)).finish(trial)

    def learn(self, trial: Trial) -> None:
        """Take in the record of a configuration that was not asked for."""
        self._keep(trial)
        self._queue.add(trial)

    def give_back(self, config: Config) -> None:
        """A configuration that was asked for and not tried to the end may be asked for again."""
        self._leases.pop(config_key(config)).release()

    def close(self) -> None:
        """Give back whatever was asked for and never told."""
        while self._leases:
            _, lease = self._leases.popitem()
            lease.release()

    def _next(self, available_s: float) -> dict[str, Value] | None:
        taken = {*self._records, *self._leased, *map(config_key, self.lethal)}
        for config in self._first:
            if config_key(config) not in taken:
                return dict(config)
        if self._legal is None:
            return self._proposed(taken)
        untried = [config for key, config in self._legal.items() if key not in taken]
        everything_s = len(untried) * (statistics.median(self._durations_s) if self._durations_s else 0.0)
        proposed = self._proposed(taken) if untried and everything_s > available_s else None
        return proposed or (self._random.choice(untried) if untried else None)

    def _proposed(self, taken: set[str]) -> dict[str, Value] | None:
        """What TPE makes of the records, in a study of its own that asking for what is taken may not clutter."""
        with quiet_optuna():
            study = optuna.create_study(sampler=self._sampler)
            study.add_trials([self._queue.to_optuna(trial) for trial in self.trials])
            for _ in range(MOST_REPEATS):
                asked = study.ask(self._queue.distributions)
                if config_key(asked.params) not in taken and self._is_legal(asked.params):
                    return dict(asked.params)
                study.tell(asked, state=TrialState.FAIL)
        return None

    def _is_legal(self, config: Config) -> bool:
        try:
            return bool(self.backend.space.complete(config, self.problem, self.backend.name) == config)
        except ConfigError:
            return False

    def _learn(self) -> None:
        """Take in what other processes have done since the last snapshot."""
        snapshot = self._queue.snapshot()
        if snapshot.recorded.keys() - self._known - {trial.id for trial in self.trials}:
            loaded = self._results.load().trials
            self._absorb(loaded)
            for id_ in snapshot.recorded.keys() - self._known - {trial.id for trial in loaded}:
                self._adopt(snapshot.recorded[id_])
        self._known |= snapshot.recorded.keys()
        self._leased = snapshot.leased
        dead = [json.loads(key) for key, deaths in snapshot.deaths.items() if deaths >= MOST_DEATHS]
        self.lethal = [config for config in dead if config_key(config) not in self._records and self._is_legal(config)]

    def _adopt(self, line: str | None) -> None:
        """Keep a record that travelled with the study among one's own."""
        if line is None:
            return
        try:
            trial = decode(line.encode())
        except RecordError:  # measured again here
            return
        self._results.append(trial)
        self._absorb([trial])

    def _absorb(self, recorded: Iterable[Trial]) -> None:
        for trial in recorded:
            # What was pruned may have been slower only than something less exact than is asked for now.
            reopened = trial.state == "pruned" and math.isfinite(self.max_error)
            if config_key(trial.config) not in self._records and self._is_ours(trial) and not reopened:
                self._keep(trial)

    def _keep(self, trial: Trial) -> None:
        self._records[config_key(trial.config)] = trial
        eligible = trial.state == "ok" and error_of(trial) <= self.max_error
        if eligible and (self.best is None or log_ratio(trial) < log_ratio(self.best)):
            self.best, self.best_scan = trial, None


def _is_of(backend: Backend, setting: Setting, anchor: Proven, trial: Trial) -> bool:
    """Whether `trial` belongs to the search of `backend` in this setting beside this anchor."""
    identity = (
        setting.machine.silicon_id,
        setting.machine.software_id,
        setting.problem.key,
        setting.inputs_label,
        backend.name,
        backend.source_hash,
        config_key(trial.config),
    )
    same_anchor = trial.measurement is None or (
        trial.measurement.anchor_source_hash == anchor.backend.source_hash
        and trial.measurement.anchor_config == anchor.config
    )
    return trial.phase == "search" and trial.state != "rejected" and trial.identity == identity and same_anchor


def study_name(backend: Backend, setting: Setting, anchor: Proven) -> str:
    """One study for each machine, software, problem, inputs, anchor, backend source and space."""
    space = json.dumps([[choice.name, choice.values] for choice in backend.space.tunables])
    sources = f"{anchor.backend.source_hash} {config_key(anchor.config)} {backend.source_hash} {space}"
    digest = hashlib.sha256(sources.encode()).hexdigest()[:12]
    machine = f"{setting.machine.silicon_id}-{setting.machine.software_id}"
    return f"{backend.name} {setting.problem.key} {setting.inputs_label} {machine} {digest}"


Sampler = Literal["random", "tpe"]


def simulate(
    values: Mapping[str, Sequence[Value]],
    outcome: Callable[[Config], float | None],
    trials: int,
    sampler: Sampler,
    seed: int,
) -> None:
    """Ask `sampler` for `trials` configurations of these tunables, each answered by `outcome`; nothing is stored.

    An `outcome` of None is a configuration that nothing is known of; neither it nor a repetition counts.
    """
    distributions: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(list(choices)) for name, choices in values.items()
    }
    told: dict[str, float | None] = {}
    with quiet_optuna():
        chosen = RandomSampler(seed=seed) if sampler == "random" else TPESampler(seed=seed, group=True)
        study = optuna.create_study(sampler=chosen)
        for _ in range(20 * trials + MOST_REPEATS):
            asked = study.ask(distributions)
            key = config_key(asked.params)
            if key not in told:
                told[key] = outcome(asked.params)
            answer = told[key]
            study.tell(asked, answer, state=TrialState.FAIL if answer is None else TrialState.COMPLETE)
            if sum(value is not None for value in told.values()) >= trials:
                return
