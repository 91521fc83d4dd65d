"""Summaries of the studies in a storage, derived from the storage alone.

Entries of another version or another program are skipped with a notice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from scanlab.bench.records import check_field_types
from scanlab.contract import registry
from scanlab.contract.base import Problem
from scanlab.contract.machine import Machine
from scanlab.contract.space import Config, config_key
from scanlab.errors import UNREADABLE
from scanlab.tuning.fleet.attributes import FACTS, LINE, OWNER, RECORD, WHY
from scanlab.tuning.fleet.storage import storage_errors, trials_of
from scanlab.tuning.fleet.trial_queue import heartbeat_of, is_leased


@dataclass(frozen=True)
class StudyFacts:
    """Subject of a study.

    Attributes:
        kind: "search" for the search of one backend, "finals" for the outcomes of comparisons.
        problem: Key of the problem.
        op: Name of its op.
        machine: A machine of the kind that is tuned, as it described itself.
        backend: Name of the backend that is searched.
        configurations: Number of legal configurations; None if the space is too large to tell.
    """

    kind: str
    problem: str
    machine: Machine
    backend: str | None = None
    configurations: int | None = None
    op: str = registry.DEFAULT_OP

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StudyFacts:
        """Return the facts that a TrialQueue was given; raises LookupError, TypeError or ValueError for others."""
        facts = cls(
            kind=values["kind"],
            problem=values["problem"],
            machine=Machine.from_json(values["machine"]),
            backend=values.get("backend"),
            configurations=values.get("configurations"),
            op=values.get("op", registry.DEFAULT_OP),
        )
        check_field_types(facts)
        return facts


@dataclass(frozen=True)
class StudySummary:
    """Summary of one study.

    Attributes:
        facts: Subject of the study.
        best: The fastest recorded configuration, if any.
        num_tried: Number of configurations with a record.
        workers: Identities of all processes that took part.
        working: Identities of the processes that evaluate something now.
        heard_at: Time of the last heartbeat in seconds since the epoch; None if no process took part.
        lines: Records that travel with the study, the winner of a comparison with the sentence that names it.
    """

    facts: StudyFacts
    best: Config | None
    num_tried: int
    workers: frozenset[str]
    working: frozenset[str]
    heard_at: float | None
    lines: tuple[tuple[str, str | None], ...]


class StudySummaries(NamedTuple):
    """Summaries of the studies that could be read, and a notice for each of the others."""

    studies: tuple[StudySummary, ...]
    notices: tuple[str, ...]


def summarize_studies(storage: BaseStorage, problem: Problem | None = None) -> StudySummaries:
    """Return a summary of every study in `storage`, or of those about `problem`."""
    summaries: list[StudySummary] = []
    notices: list[str] = []
    with storage_errors():
        for study in storage.get_all_studies():
            facts = study.user_attrs.get(FACTS)
            if facts is None:
                continue
            if problem is not None and isinstance(facts, Mapping):
                about = (facts.get("op", registry.DEFAULT_OP), facts.get("problem"))
                if about != (problem.op, problem.key):
                    continue
            try:
                entries = trials_of(storage, study._study_id)
                summaries.append(_summary(StudyFacts.from_json(facts), entries))
            except UNREADABLE as error:
                notices.append(
                    f"the study {study.study_name!r} was skipped, because it is not understood:"
                    f" {type(error).__name__}: {error}"
                )
    return StudySummaries(tuple(summaries), tuple(notices))


def _summary(facts: StudyFacts, entries: Sequence[FrozenTrial]) -> StudySummary:
    recorded = [entry for entry in entries if RECORD in entry.user_attrs]
    owned = [entry for entry in entries if OWNER in entry.user_attrs]
    timed = {entry.value: entry for entry in recorded if entry.state == TrialState.COMPLETE and entry.value is not None}
    beats = map(heartbeat_of, owned)
    lines = ((entry.user_attrs.get(LINE), entry.user_attrs.get(WHY)) for entry in recorded)
    return StudySummary(
        facts=facts,
        best=timed[min(timed)].params if timed else None,
        num_tried=len({config_key(entry.params) for entry in recorded}),
        workers=frozenset(_owner(entry) for entry in owned),
        working=frozenset(_owner(entry) for entry in owned if is_leased(entry, _silent_s(entry))),
        heard_at=max((beat for beat in beats if beat is not None), default=None),
        lines=tuple((line, why if isinstance(why, str) else None) for line, why in lines if isinstance(line, str)),
    )


def _silent_s(entry: FrozenTrial) -> float:
    """Return the seconds since a heartbeat by the clocks of both hosts; what looks once knows no better."""
    return abs(time.time() - (heartbeat_of(entry) or 0.0))


def _owner(entry: FrozenTrial) -> str:
    return json.dumps(entry.user_attrs[OWNER], sort_keys=True)
