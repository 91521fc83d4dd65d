"""Queue of the configurations of one study: leases, and results.

A lease is first written whole, with its configuration and its owner, and then looked up: two processes that lease the
same configuration at the same moment both see both leases, and the earlier one is valid. No storage is locked while a
process chooses or measures. The lease of a process that died is found by its owner and ended.

A process of another host died where its heartbeat no longer changes, by the monotonic clock of whoever looks: the
clocks of hosts may differ, and may be set while they work. A heartbeat that is days away counts as silence at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from scanlab.bench.records import MAX_TIME_S, Trial, encode, log_ratio
from scanlab.contract.space import Config, Tunable, config_key
from scanlab.tuning.fleet import attributes, process_identity
from scanlab.tuning.fleet.heartbeat import Heartbeat
from scanlab.tuning.fleet.storage import quiet_optuna, storage_errors, trials_of

# By more than this the clocks of two hosts do not differ, nor is one of them set while it works.
MAX_CLOCK_ERROR_S = 24 * 3600.0


@dataclass(frozen=True)
class QueueSnapshot:
    """State of a queue at one moment.

    Attributes:
        leased: Keys of the configurations that living processes evaluate.
        recorded: Line of every record by its id; None if records do not travel with the study.
    """

    leased: frozenset[str]
    recorded: Mapping[str, str | None]


class TrialQueue:
    """The study called `name` in `storage`, created if there is none.

    Args:
        facts: Subject of the study, as JSON values, for readers of the storage alone.
        tunables: Tunables of the space that is searched; none for a study that nothing is leased from.
        carries_records: Whether records travel with the study, because workers share it and no results folder.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        facts: Mapping[str, Any],
        tunables: Iterable[Tunable],
        carries_records: bool,
    ) -> None:
        self._storage = storage
        self._carries_records = carries_records
        self._recorded: frozenset[str] = frozenset()
        self._beats: dict[int, tuple[float, float]] = {}  # by trial: the heartbeat, and when this process saw it first
        self.distributions: dict[str, BaseDistribution] = {
            tunable.name: CategoricalDistribution(tunable.values) for tunable in tunables
        }
        with quiet_optuna(), storage_errors():
            optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
            self._study = storage.get_study_id_from_name(name)
            if attributes.FACTS not in storage.get_study_user_attrs(self._study):
                storage.set_study_user_attr(self._study, attributes.FACTS, dict(facts))

    def snapshot(self) -> QueueSnapshot:
        """Return the state of the queue, after ending the leases of dead processes."""
        leased, recorded = set[str](), dict[str, str | None]()
        with storage_errors():
            for entry in self._entries():
                attrs = entry.user_attrs
                if self._is_leased(entry):
                    leased.add(config_key(entry.params))
                elif attributes.RECORD in attrs and entry.state.is_finished():
                    line = attrs.get(attributes.LINE)
                    recorded[str(attrs[attributes.RECORD])] = line if isinstance(line, str) else None
                elif entry.state == TrialState.RUNNING:
                    self._end(entry._trial_id, attributes.DIED)
        self._recorded = frozenset(recorded)
        return QueueSnapshot(frozenset(leased), recorded)

    def lease(self, config: Config) -> Lease | None:
        """Return a lease of this process on `config`; None if another process was faster, since the last snapshot."""
        attrs = {attributes.OWNER: process_identity.this_process(), attributes.BEAT: time.time()}
        with storage_errors():
            entry = optuna.trial.create_trial(
                state=TrialState.RUNNING, params=dict(config), distributions=self.distributions, user_attrs=attrs
            )
            own = self._storage.create_new_trial(self._study, entry)
            number = self._storage.get_trial(own).number
            for entry in self._entries():
                earlier = entry.number < number and self._is_leased(entry)
                record = entry.user_attrs.get(attributes.RECORD)
                recorded = entry.state.is_finished() and record is not None and str(record) not in self._recorded
                if (earlier or recorded) and entry.params == config:
                    self._end(own, attributes.GIVEN_BACK)
                    return None
        return Lease(self, own)

    def add(self, trial: Trial) -> None:
        """Add the record of a configuration that was not leased."""
        with storage_errors():
            self._storage.create_new_trial(self._study, self.to_optuna(trial, self._attrs(trial)))

    def publish(self, trials: Iterable[Trial], why: str) -> None:
        """Add the outcome of a comparison: its trials, the winner first, and the sentence that names the winner."""
        with storage_errors():
            for place, trial in enumerate(trials):
                attrs = {attributes.PLACE: place, attributes.LABEL: trial.label, **self._attrs(trial)}
                if place == 0:
                    attrs[attributes.WHY] = why
                entry = optuna.trial.create_trial(state=_state(trial), value=_value(trial), user_attrs=attrs)
                self._storage.create_new_trial(self._study, entry)

    def to_optuna(self, trial: Trial, attrs: Mapping[str, Any] | None = None) -> FrozenTrial:
        """Return a record as a trial of optuna, for a sampler to learn from."""
        value, measurement = _value(trial), trial.measurement
        steps = {} if measurement is None or value is None else {len(measurement.blocks): value}
        return optuna.trial.create_trial(
            state=_state(trial),
            value=value,
            params=dict(trial.config),
            distributions=self.distributions,
            user_attrs=dict(attrs or {}),
            intermediate_values=steps,
        )

    def _finish(self, own: int, trial: Trial) -> None:
        entry = self.to_optuna(trial, self._attrs(trial))
        try:
            with storage_errors():
                for name, content in entry.user_attrs.items():
                    self._storage.set_trial_user_attr(own, name, content)
                for step, value in entry.intermediate_values.items():
                    self._storage.set_trial_intermediate_value(own, step, value)
                self._storage.set_trial_state_values(own, entry.state, entry.values)
        except UpdateFinishedTrialError:  # this process was silent for so long that it was taken for dead
            self.add(trial)

    def _release(self, own: int) -> None:
        with storage_errors():
            self._end(own, attributes.GIVEN_BACK)

    def _beat(self, own: int) -> None:
        with storage_errors():
            self._storage.set_trial_user_attr(own, attributes.BEAT, time.time())

    def _is_leased(self, entry: FrozenTrial) -> bool:
        """Return whether a living process evaluates a trial, by how long its heartbeat has not changed here."""
        beat = heartbeat_of(entry)
        if beat is None or abs(time.time() - beat) > MAX_CLOCK_ERROR_S:
            return is_leased(entry, math.inf)
        now = time.monotonic()
        known, since = self._beats.get(entry._trial_id, (None, now))
        if known != beat:
            since = now
            self._beats[entry._trial_id] = beat, since
        return is_leased(entry, now - since)

    def _entries(self) -> list[FrozenTrial]:
        return trials_of(self._storage, self._study)

    def _end(self, trial_id: int, how: str) -> None:
        with suppress(UpdateFinishedTrialError):  # another process has ended it
            self._storage.set_trial_user_attr(trial_id, attributes.ENDED, how)
            self._storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def _attrs(self, trial: Trial) -> dict[str, Any]:
        attrs = {attributes.RECORD: trial.id}
        if trial.reason is not None:
            attrs[attributes.REASON] = trial.reason
        if self._carries_records:
            attrs[attributes.LINE] = encode(trial).decode().rstrip("\n")
        return attrs


class Lease:
    """Right of this process to evaluate a configuration, renewed by heartbeats until it ends."""

    def __init__(self, queue: TrialQueue, own: int) -> None:
        self._queue = queue
        self._own = own
        self._heartbeat = Heartbeat(lambda: queue._beat(own))
        self._heartbeat.start()

    def finish(self, trial: Trial) -> None:
        """End the lease with the record of its configuration."""
        self._heartbeat.stop()
        self._queue._finish(self._own, trial)

    def release(self) -> None:
        """End the lease without a record: any process may lease the configuration again."""
        self._heartbeat.stop()
        self._queue._release(self._own)


def is_leased(entry: FrozenTrial, silent_s: float) -> bool:
    """Return whether a living process evaluates a trial, whose last heartbeat was `silent_s` ago."""
    owner = entry.user_attrs.get(attributes.OWNER)
    return (
        entry.state == TrialState.RUNNING
        and isinstance(owner, Mapping)
        and heartbeat_of(entry) is not None
        and process_identity.is_alive(owner, silent_s)
    )


def heartbeat_of(entry: FrozenTrial) -> float | None:
    """Return when the process that evaluates a trial was last heard of, in seconds since the epoch; None if unknown."""
    beat = entry.user_attrs.get(attributes.BEAT)
    return beat if isinstance(beat, int | float) and 0 <= beat < MAX_TIME_S else None


def _state(trial: Trial) -> TrialState:
    return {"ok": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(trial.state, TrialState.FAIL)


def _value(trial: Trial) -> float | None:
    return log_ratio(trial) if trial.state in ("ok", "pruned") else None
