"""Search of one backend's space: the next configuration, given the records, and the end of a trial.

The records hold every result. The queue holds only the leases, that is which process evaluates which configuration,
and a copy of the results, so that a lost or damaged storage loses leases alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import statistics
from collections.abc import Iterable, Sequence

import optuna
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from scanlab.bench.context import BenchmarkContext, Candidate
from scanlab.bench.records import RecordError, Trial, decode, error_of
from scanlab.bench.samples import Measurement
from scanlab.bench.store import TrialStore
from scanlab.contract.backend import Backend
from scanlab.contract.space import Config, config_key
from scanlab.errors import ConfigError
from scanlab.tuning.fleet.storage import quiet_optuna
from scanlab.tuning.fleet.trial_queue import Lease, TrialQueue

# Up to this many legal configurations a search may try every one of them, where there is time for that.
EXHAUSTIVE_SIZE = 256
# A sampler that proposes this many illegal configurations in a row is exhausted.
MAX_REPEATS = 40

MIN_BLOCKS = 3
MAX_BLOCKS = 16
# A candidate that would be the best of its backend is measured until its 95 % interval is known.
CONFIRMED_BLOCKS = 6
# Half the width of the interval of the log ratio at which more blocks would tell a search nothing.
PRECISE_ENOUGH = 0.02
# One clean block is enough to give up a configuration that takes this many times as long as the best of its backend in
# every sample.
PRUNING_FACTOR = 2.0


def is_confirmed(measurement: Measurement) -> bool:
    """Return whether a measurement rests on enough clean blocks to prune others."""
    return len(measurement.clean) >= CONFIRMED_BLOCKS


def has_converged(measurement: Measurement, best: Measurement | None) -> bool:
    """Return whether a search needs no further blocks of a candidate.

    Disturbed blocks are repeated, up to the limit; a new best is confirmed.
    """
    if len(measurement.blocks) >= MAX_BLOCKS:
        return True
    interval = measurement.baseline_interval
    leads = best is None or interval.high < best.baseline_interval.high
    needed = CONFIRMED_BLOCKS if leads else MIN_BLOCKS
    return len(measurement.clean) >= needed and interval.high - interval.low <= 2 * PRECISE_ENOUGH


def should_prune(measurement: Measurement, best: Measurement | None) -> str | None:
    """Return why more blocks would not make this the best of its backend, or None.

    Args:
        measurement: Measurement of the candidate, so far.
        best: Best confirmed measurement; a candidate is compared with the upper end of its interval.
    """
    if best is None or not measurement.clean:
        return None
    behind = math.exp(measurement.baseline_log_ratio - best.baseline_log_ratio)
    least = min(math.log(min(each.candidate_ns) / max(each.baseline_ns)) for each in measurement.clean)
    if least - best.baseline_interval.high > math.log(PRUNING_FACTOR):
        return f"takes {behind:.2g} times as long as the best of its backend, by the first clean blocks"
    is_apart = measurement.baseline_interval.low > best.baseline_interval.high
    if is_apart and len(measurement.clean) >= MIN_BLOCKS:
        return f"takes {behind:.2f} times as long as the best of its backend, and their intervals are apart"
    return None


def upper_end(trial: Trial) -> float:
    """Return the pessimistic end of the interval of log(time / baseline's time) of a trial that was measured."""
    assert trial.measurement is not None
    return trial.measurement.baseline_interval.high


class Search:
    """Search of one backend's space for the fastest configuration in one context.

    Args:
        baseline: Trials beside another one are not comparable and are left alone.
        recorded: Trials of this backend, of any context.
        max_error: The best may not exceed this error.
        carries: Whether records travel with the study, see `TrialQueue`.
        first: Configurations to try first, after the defaults.

    Attributes:
        waiting: Whether all that is left to try was in the hands of others when this search was last asked.
        was_timed: Whether there were trials of it at its start, be they only such as are tried again.
    """

    def __init__(
        self,
        backend: Backend,
        context: BenchmarkContext,
        baseline: Candidate,
        recorded: Sequence[Trial],
        storage: BaseStorage,
        store: TrialStore,
        max_error: float = math.inf,
        carries: bool = False,
        first: Iterable[Config] = (),
    ) -> None:
        self.backend = backend
        self.problem = context.problem
        self.max_error = max_error
        self.waiting = False
        self._context = context
        self._baseline = baseline
        self._store = store
        self._records: dict[str, Trial] = {}
        self._leases: dict[str, Lease] = {}
        self._leased: frozenset[str] = frozenset()
        self._known: set[str] = set()
        self._durations_s = [trial.duration_s for trial in recorded if self._is_ours(trial)]
        self.was_timed = bool(self._durations_s)
        legal = list(itertools.islice(backend.space.configs(self.problem), EXHAUSTIVE_SIZE + 1))
        self._legal = {config_key(each): each for each in legal} if len(legal) <= EXHAUSTIVE_SIZE else None
        self._first = [backend.space.defaults, *filter(self._is_legal, first)]
        self._random = random.Random(context.seed)
        with quiet_optuna():
            self._sampler = TPESampler(seed=context.seed, group=True)
        facts = {
            "kind": "search",
            "backend": backend.name,
            "op": self.problem.op,
            "problem": self.problem.key,
            "inputs": context.inputs_label,
            "machine": context.machine.to_json(),
            "configurations": None if self._legal is None else len(self._legal),
        }
        name = study_name(backend, context, baseline)
        self._queue = TrialQueue(storage, name, facts, backend.space.tunables, carries)
        self._absorb(recorded)
        self._learn()
        for trial in self.trials:
            if trial.id not in self._known:
                self._queue.add(trial)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Trials of this search, from this process and others."""
        return tuple(self._records.values())

    @property
    def eligible(self) -> list[Trial]:
        """Trials that may win, by the pessimistic end of their intervals."""
        trials = [each for each in self.trials if each.state == "ok" and error_of(each) <= self.max_error]
        return sorted(trials, key=upper_end)

    @property
    def best(self) -> Measurement | None:
        """Best confirmed measurement, which others are pruned by."""
        found = [each.measurement for each in self.eligible if each.measurement and is_confirmed(each.measurement)]
        return found[0] if found else None

    @property
    def best_upper_end(self) -> float:
        """Pessimistic end of the interval of the best trial; infinite without one."""
        return upper_end(self.eligible[0]) if self.eligible else math.inf

    @property
    def spent_s(self) -> float:
        """Time spent on it, by this process and others."""
        return sum(trial.duration_s for trial in self._records.values())

    @property
    def left(self) -> int | None:
        """Number of legal configurations that have not been tried; None if the space is too large to tell."""
        return None if self._legal is None else len(self._legal.keys() - self._records.keys())

    @property
    def rebuild_s(self) -> float:
        """Time to build a tried configuration again, in any process: the shortest of the builds so far.

        The first one compiles; after that libraries and generated code lie on disk. Where one configuration was built
        of a backend that compiles once for all, the next is expected to take no time.
        """
        if len(self._durations_s) < 2 and not self.backend.compiles_each:
            return 0.0
        timed = [trial.measurement for trial in self.trials if trial.measurement is not None]
        return min(((each.build_ms + each.first_call_ms) / 1e3 for each in timed), default=0.0)

    @property
    def expected_s(self) -> float:
        """Duration of the next trial, by the last few and a margin; 0 before the first.

        That of the defaults is without their build, which comes before the search.
        """
        if not self._durations_s:
            return 0.0
        build_s = self.rebuild_s if len(self._durations_s) == 1 else 0.0
        return build_s + 1.5 * statistics.median(self._durations_s[-5:])

    def candidate(self, config: Config) -> Candidate:
        """Return the candidate of this backend with `config`."""
        return Candidate(self.backend, dict(config))

    def ask(self, available_s: float) -> Candidate | None:
        """Return the next candidate to try, which no other process tries; None if there is none.

        Every configuration is tried where `available_s` suffices for that, and otherwise TPE chooses.
        """
        for _ in range(MAX_REPEATS):
            self._learn()
            config = self._next(available_s)
            self.waiting = config is None and bool(self._leased)
            if config is None:
                return None
            lease = self._queue.lease(config)
            if lease is not None:
                self._leases[config_key(config)] = lease
                return self.candidate(config)
        return None

    def tell(self, trial: Trial) -> None:
        """Take in the record of a candidate, whether it was asked for or not."""
        self._durations_s.append(trial.duration_s)
        self._records[config_key(trial.config)] = trial
        lease = self._leases.pop(config_key(trial.config), None)
        if lease is None:
            self._queue.add(trial)
        else:
            lease.finish(trial)

    def close(self) -> None:
        """Release the configurations that were asked for and never told."""
        while self._leases:
            _, lease = self._leases.popitem()
            lease.release()

    def _next(self, available_s: float) -> Config | None:
        taken = {*self._records, *self._leased}
        for config in self._first:
            if config_key(config) not in taken:
                return config
        if self._legal is None:
            return self._proposed(taken)
        untried = [config for key, config in self._legal.items() if key not in taken]
        everything_s = len(untried) * (statistics.median(self._durations_s) if self._durations_s else 0.0)
        proposed = self._proposed(taken) if untried and everything_s > available_s else None
        return proposed or (self._random.choice(untried) if untried else None)

    def _proposed(self, taken: set[str]) -> Config | None:
        """Ask TPE, by the records, in a study of its own: proposals that are taken must not fill the shared one."""
        with quiet_optuna():
            study = optuna.create_study(sampler=self._sampler)
            study.add_trials([self._queue.to_optuna(trial) for trial in self.trials])
            for _ in range(MAX_REPEATS):
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
        """Add the trials of other processes since the last snapshot."""
        snapshot = self._queue.snapshot()
        if snapshot.recorded.keys() - self._known - {trial.id for trial in self.trials}:
            loaded = self._store.load().trials
            self._absorb(loaded)
            for id_ in snapshot.recorded.keys() - self._known - {trial.id for trial in loaded}:
                self._adopt(snapshot.recorded[id_])
        self._known |= snapshot.recorded.keys()
        self._leased = snapshot.leased

    def _adopt(self, line: str | None) -> None:
        """Keep a record that travelled with the study among one's own."""
        if line is not None:
            try:
                trial = decode(line.encode())
            except RecordError:
                return
            self._store.append(trial)
            self._absorb([trial])

    def _absorb(self, recorded: Iterable[Trial]) -> None:
        """Take in trials of this search; those that a quiet machine may answer otherwise are tried again."""
        for trial in recorded:
            # A pruned trial may have been slower only than one less exact than is asked for now.
            reopened = trial.state == "disturbed" or (trial.state == "pruned" and math.isfinite(self.max_error))
            if config_key(trial.config) not in self._records and self._is_ours(trial) and not reopened:
                self._records[config_key(trial.config)] = trial

    def _is_ours(self, trial: Trial) -> bool:
        """Return whether `trial` belongs to this search: machine, software, problem, inputs, source and baseline."""
        context = self._context
        identity = (
            context.machine.silicon_id,
            context.machine.software_id,
            self.problem.key,
            context.inputs_label,
            self.backend.name,
            self.backend.source_hash,
            config_key(trial.config),
        )
        same_baseline = trial.measurement is None or (
            trial.measurement.baseline_source_hash == self._baseline.backend.source_hash
            and trial.measurement.baseline_config == self._baseline.config
        )
        return trial.phase == "search" and trial.state != "rejected" and trial.identity == identity and same_baseline


def study_name(backend: Backend, context: BenchmarkContext, baseline: Candidate) -> str:
    """Return a name of its own for each machine, software, problem, inputs, baseline, backend source and space."""
    space = json.dumps([[choice.name, choice.values] for choice in backend.space.tunables])
    sources = f"{baseline.backend.source_hash} {config_key(baseline.config)} {backend.source_hash} {space}"
    digest = hashlib.sha256(sources.encode()).hexdigest()[:12]
    machine = f"{context.machine.silicon_id}-{context.machine.software_id}"
    return f"{backend.name} {context.problem.key} {context.inputs_label} {machine} {digest}"
