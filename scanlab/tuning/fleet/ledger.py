"""One study as a ledger: which process tries which configuration, and what came of it.

A claim is written whole, with its configuration and its signature, and then looked for: of two that claim the
same at the same moment both see it, and the earlier one keeps it. So nothing is locked, on any storage, while a
process thinks or measures; and who claims and dies is found by its signature, and loses the claim.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from scanlab.bench.records import Trial, encode, log_ratio
from scanlab.contract.space import Config, Tunable, config_key
from scanlab.tuning.fleet import owner
from scanlab.tuning.fleet.storage import quiet, reached

# Between two signs of life; several fit into the time after which another host takes a process for dead.
BEAT_S = owner.LEASE_S / 5

# The attributes of an entry.
OWNER, BEAT, RECORD, LINE, REASON, ENDED = "owner", "beat", "record", "line", "reason", "ended"
PLACE, LABEL, WHY = "place", "label", "why"
# The attribute of a study.
FACTS = "facts"


@dataclass(frozen=True)
class Look:
    """What a ledger says at one moment.

    claimed  the keys of the configurations that living processes work on
    deaths   by the key of a configuration: how many processes died while they worked on it
    told     by the id of every record that was told: the line it is written in, or None where it does not travel
    """

    claimed: frozenset[str]
    deaths: Mapping[str, int]
    told: Mapping[str, str | None]


class Ledger:
    """The study called `name` in `storage`, made where there is none.

    facts    what the study is about, as JSON values, for whoever looks at the storage alone
    carries  whether records travel with the study, because the storage is shared and the results folder is not
    """

    def __init__(
        self, storage: BaseStorage, name: str, facts: Mapping[str, Any], choices: Iterable[Tunable], carries: bool
    ) -> None:
        self._storage = storage
        self._carries = carries
        self._seen: frozenset[str] = frozenset()
        self.distributions: dict[str, BaseDistribution] = {
            choice.name: CategoricalDistribution(choice.values) for choice in choices
        }
        with quiet(), reached():
            optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
            self._id = storage.get_study_id_from_name(name)
            if FACTS not in storage.get_study_user_attrs(self._id):
                storage.set_study_user_attr(self._id, FACTS, dict(facts))

    def look(self) -> Look:
        """What the ledger says now; the claims of dead processes are ended."""
        claimed, told = set[str](), dict[str, str | None]()
        deaths = Counter[str]()
        with reached():
            for entry in self._entries():
                attrs = entry.user_attrs
                if held(entry):
                    claimed.add(config_key(entry.params))
                elif RECORD in attrs and entry.state.is_finished():
                    told[attrs[RECORD]] = attrs.get(LINE)
                elif entry.state == TrialState.RUNNING:
                    self._end(entry._trial_id, "died")
                    deaths[config_key(entry.params)] += 1
                elif attrs.get(ENDED) == "died":
                    deaths[config_key(entry.params)] += 1
        self._seen = frozenset(told)
        return Look(frozenset(claimed), deaths, told)

    def claim(self, config: Config) -> Claim | None:
        """The claim of this process on `config`; None where another was quicker, since the last look."""
        attrs: dict[str, Any] = {OWNER: owner.this_process(), BEAT: time.time()}
        with reached():
            entry = optuna.trial.create_trial(
                state=TrialState.RUNNING, params=dict(config), distributions=self.distributions, user_attrs=attrs
            )
            own = self._storage.create_new_trial(self._id, entry)
            number = self._storage.get_trial(own).number
            for entry in self._entries():
                earlier = entry.number < number and held(entry)
                finished = entry.state.is_finished() and entry.user_attrs.get(RECORD, "") not in (*self._seen, "")
                if (earlier or finished) and entry.params == config:
                    self._end(own, "given back")
                    return None
        return Claim(self, own)

    def add(self, trial: Trial) -> None:
        """Tell a record that nobody claimed."""
        with reached():
            self._storage.create_new_trial(self._id, self.entry(trial, self._attrs(trial)))

    def publish(self, trials: Iterable[Trial], why: str) -> None:
        """Tell the outcome of a race: its trials, the winner first, and the sentence that names it."""
        with reached():
            for place, trial in enumerate(trials):
                attrs = {PLACE: place, LABEL: trial.label, **self._attrs(trial), **({} if place else {WHY: why})}
                entry = optuna.trial.create_trial(state=_state(trial), value=_value(trial), user_attrs=attrs)
                self._storage.create_new_trial(self._id, entry)

    def entry(self, trial: Trial, attrs: Mapping[str, Any] | None = None) -> FrozenTrial:
        """What optuna is told of a record."""
        steps = {len(trial.measurement.blocks): log_ratio(trial)} if trial.measurement else {}
        return optuna.trial.create_trial(
            state=_state(trial),
            value=_value(trial),
            params=dict(trial.config),
            distributions=self.distributions,
            user_attrs=dict(attrs or {}),
            intermediate_values=steps,
        )

    def finish(self, own: int, trial: Trial) -> None:
        """End a claim with its record."""
        entry = self.entry(trial, self._attrs(trial))
        try:
            with reached():
                for name, content in entry.user_attrs.items():
                    self._storage.set_trial_user_attr(own, name, content)
                for step, value in entry.intermediate_values.items():
                    self._storage.set_trial_intermediate_value(own, step, value)
                self._storage.set_trial_state_values(own, entry.state, entry.values)
        except UpdateFinishedTrialError:  # this process was silent for so long that it was taken for dead
            self.add(trial)

    def give_back(self, own: int) -> None:
        """End a claim without a record."""
        with reached():
            self._end(own, "given back")

    def beat(self, own: int) -> None:
        """Give a sign of life for a claim."""
        self._storage.set_trial_user_attr(own, BEAT, time.time())

    def _entries(self) -> list[FrozenTrial]:
        return self._storage.get_all_trials(self._id, deepcopy=False)

    def _end(self, number: int, how: str) -> None:
        with suppress(UpdateFinishedTrialError):  # another process has ended it
            self._storage.set_trial_user_attr(number, ENDED, how)
            self._storage.set_trial_state_values(number, TrialState.FAIL)

    def _attrs(self, trial: Trial) -> dict[str, str]:
        attrs = {RECORD: trial.id}
        if trial.reason is not None:
            attrs[REASON] = trial.reason
        if self._carries:
            attrs[LINE] = encode(trial).decode().rstrip("\n")
        return attrs


class Claim:
    """The right of this process to try a configuration; it gives signs of life until it ends."""

    def __init__(self, ledger: Ledger, own: int) -> None:
        self._ledger = ledger
        self._own = own
        self._heart = _Heart(lambda: ledger.beat(own))
        self._heart.start()

    def finish(self, trial: Trial) -> None:
        """End it with the record of its configuration."""
        self._heart.stop()
        self._ledger.finish(self._own, trial)

    def give_back(self) -> None:
        """End it without a record: the configuration is free again."""
        self._heart.stop()
        self._ledger.give_back(self._own)


class _Heart(threading.Thread):
    """Beats until it is stopped."""

    def __init__(self, beat: Callable[[], None]) -> None:
        super().__init__(name="scanlab-heartbeat", daemon=True)
        self._beat = beat
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(BEAT_S):
            try:
                self._beat()
            except UpdateFinishedTrialError:
                return
            except Exception:  # noqa: BLE001  # a storage that does not answer is named by the next use of it
                continue

    def stop(self) -> None:
        self._stopped.set()


@dataclass(frozen=True)
class Study:
    """What one study says to somebody who knows only the storage.

    facts     what it is about, as it was given to its ledger
    best      the fastest configuration that was told, or None
    tried     how many configurations have a record
    workers   the signatures of all processes that took part, and of those that work on something now
    heard_at  the last sign of life, in seconds since the epoch; None where nobody took part
    lines     the records that travel with it, and the sentence that names a race's winner beside that winner's
    """

    facts: Mapping[str, Any]
    best: Config | None
    tried: int
    workers: frozenset[str]
    working: frozenset[str]
    heard_at: float | None
    lines: tuple[tuple[str, str | None], ...]


def survey(storage: BaseStorage, wanted: Callable[[Mapping[str, Any]], bool]) -> tuple[Study, ...]:
    """Every study in `storage` whose facts are `wanted`."""
    with reached():
        return tuple(
            _study(found.user_attrs[FACTS], storage.get_all_trials(found._study_id, deepcopy=False))
            for found in storage.get_all_studies()
            if FACTS in found.user_attrs and wanted(found.user_attrs[FACTS])
        )


def _study(facts: Mapping[str, Any], entries: Sequence[FrozenTrial]) -> Study:
    told = [entry for entry in entries if RECORD in entry.user_attrs]
    signed = [entry for entry in entries if OWNER in entry.user_attrs]
    timed = [entry for entry in told if entry.state == TrialState.COMPLETE]
    best = min(timed, key=lambda entry: entry.value or 0.0, default=None)
    return Study(
        facts=facts,
        best=None if best is None else best.params,
        tried=len({config_key(entry.params) for entry in told}),
        workers=frozenset(_signed_by(entry) for entry in signed),
        working=frozenset(_signed_by(entry) for entry in signed if held(entry)),
        heard_at=max((entry.user_attrs[BEAT] for entry in signed), default=None),
        lines=tuple((entry.user_attrs[LINE], entry.user_attrs.get(WHY)) for entry in told if LINE in entry.user_attrs),
    )


def _signed_by(entry: FrozenTrial) -> str:
    return json.dumps(entry.user_attrs[OWNER], sort_keys=True)


def _state(trial: Trial) -> TrialState:
    return {"ok": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(trial.state, TrialState.FAIL)


def _value(trial: Trial) -> float | None:
    return None if trial.measurement is None else log_ratio(trial)


def held(entry: FrozenTrial) -> bool:
    """Whether a living process works on an entry."""
    attrs = entry.user_attrs
    return entry.state == TrialState.RUNNING and OWNER in attrs and owner.holds(attrs[OWNER], time.time() - attrs[BEAT])
