"""Summaries of the studies in a storage, for readers that know nothing but the storage."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from scanlab.contract.machine import Machine
from scanlab.contract.space import Config, config_key
from scanlab.tuning.fleet.attributes import BEAT, FACTS, LINE, OWNER, RECORD, WHY
from scanlab.tuning.fleet.storage import storage_errors
from scanlab.tuning.fleet.trial_queue import is_leased


@dataclass(frozen=True)
class StudySummary:
    """Summary of one study.

    Attributes:
        facts: What the study is about, as it was given to its TrialQueue.
        best: The fastest recorded configuration, if any.
        num_tried: Number of configurations with a record.
        workers: Identities of all processes that took part.
        working: Identities of the processes that evaluate something now.
        heard_at: Time of the last heartbeat in seconds since the epoch; None if no process took part.
        lines: Records that travel with the study, the winner of a comparison with the sentence that names it.
    """

    facts: Mapping[str, Any]
    best: Config | None
    num_tried: int
    workers: frozenset[str]
    working: frozenset[str]
    heard_at: float | None
    lines: tuple[tuple[str, str | None], ...]


def summarize_studies(
    storage: BaseStorage, is_wanted: Callable[[Mapping[str, Any]], bool] = lambda facts: True
) -> tuple[StudySummary, ...]:
    """Return a summary of every study in `storage` whose facts are wanted."""
    with storage_errors():
        return tuple(
            _summary(study.user_attrs[FACTS], storage.get_all_trials(study._study_id, deepcopy=False))
            for study in storage.get_all_studies()
            if isinstance(study.user_attrs.get(FACTS), Mapping) and is_wanted(study.user_attrs[FACTS])
        )


def _summary(facts: Mapping[str, Any], entries: Sequence[FrozenTrial]) -> StudySummary:
    recorded = [entry for entry in entries if RECORD in entry.user_attrs]
    owned = [entry for entry in entries if OWNER in entry.user_attrs]
    timed = [entry for entry in recorded if entry.state == TrialState.COMPLETE]
    best = min(timed, key=lambda entry: entry.value or 0.0, default=None)
    beats = (entry.user_attrs.get(BEAT) for entry in owned)
    return StudySummary(
        facts=facts,
        best=None if best is None else best.params,
        num_tried=len({config_key(entry.params) for entry in recorded}),
        workers=frozenset(_owner(entry) for entry in owned),
        working=frozenset(_owner(entry) for entry in owned if is_leased(entry)),
        heard_at=max((beat for beat in beats if isinstance(beat, int | float)), default=None),
        lines=tuple(
            (entry.user_attrs[LINE], entry.user_attrs.get(WHY)) for entry in recorded if LINE in entry.user_attrs
        ),
    )


def _owner(entry: FrozenTrial) -> str:
    return json.dumps(entry.user_attrs[OWNER], sort_keys=True)


def machine_of(study: StudySummary) -> Machine:
    """Return the machine that a study is about."""
    return Machine.from_json(study.facts["machine"])
