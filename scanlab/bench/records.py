"""A trial, and its record: one line of JSON with a checksum.

A line is {"crc32":"xxxxxxxx",...}: the checksum covers every byte between its own comma and the end of the line, so
that damage is found without parsing.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import secrets
import types
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from scanlab.bench.samples import Measurement
from scanlab.contract import registry
from scanlab.contract.base import Problem
from scanlab.contract.evidence import EvidenceRank, rank_of
from scanlab.contract.machine import Machine
from scanlab.contract.space import Value, config_key
from scanlab.contract.verify import Verdict
from scanlab.errors import UNREADABLE

Phase = Literal["search", "comparison", "holdout", "lengths"]
State = Literal["ok", "wrong", "rejected", "crashed", "pruned", "disturbed"]
MEASURED: tuple[State, ...] = ("ok", "pruned", "disturbed")

# 2: a pacer instead of a slow anchor; heat and frequency around a block. Fields that 1 lacks are optional.
# 3: a baseline and a reference where 2 has an anchor and a pacer; trials that were disturbed.
# 4: the op of the problem; the phase "comparison" where 3 has "race".
SCHEMA = 4
# Integers beyond this fit neither a file's statistics nor a float.
MAX_INT = 1 << 63
# The end of the year 9999, the last that a calendar can show.
MAX_TIME_S = 253_402_300_800


def new_id() -> str:
    """Return an identifier that no other trial has."""
    return secrets.token_hex(8)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One configuration of one backend, tried on one problem.

    Attributes:
        phase: "search" (looking for the best), "comparison" (candidates side by side, to choose), "holdout" (the chosen
            on fresh inputs, to publish) or "lengths" (time against length).
        inputs_label: Origin of the inputs.
        source_hash: Hash of the backend's sources when it was tried.
        state: "ok"; "wrong" (disagreed with the reference); "rejected" (the backend does not solve the problem, or
            cannot run here); "crashed" (it raised, or its process died); "pruned" (measured until it was clearly too
            slow); "disturbed" (measured, with too few blocks free of interference to say anything).
        reason: Why the state is not ok.
        started_at: Seconds since the epoch.
        duration_s: Building, verifying and measuring, without waiting for a quiet machine.
    """

    phase: Phase
    problem: Problem
    inputs_label: str
    backend: str
    source_hash: str
    config: Mapping[str, Value]
    state: State
    machine: Machine
    seed: int
    started_at: float
    duration_s: float
    verdict: Verdict | None = None
    measurement: Measurement | None = None
    reason: str | None = None
    id: str = field(default_factory=new_id)

    def __post_init__(self) -> None:
        for noun, value, legal in (("state", self.state, get_args(State)), ("phase", self.phase, get_args(Phase))):
            if value not in legal:
                raise ValueError(f"{noun}={value!r}: must be one of {', '.join(legal)}.")
        passed = self.verdict is not None and self.verdict.passed
        if self.measurement is not None and not passed:
            raise ValueError(f"{self.label} has a measurement without a passed verdict: verify it first.")
        if (self.state in MEASURED) != (self.measurement is not None):
            raise ValueError(
                f"{self.label} is {self.state}: a trial has a measurement exactly when it is {', '.join(MEASURED)}."
            )
        if self.state in ("ok", "pruned") and self.measurement is not None and not self.measurement.clean:
            raise ValueError(f"{self.label} is {self.state} without a clean block: it is disturbed.")
        if (self.state == "ok") != (self.reason is None):
            raise ValueError(f"{self.label} is {self.state}: a trial has a reason exactly when it is not ok.")

    @property
    def label(self) -> str:
        """Backend and configuration, as a person would name them."""
        return label_of(self.backend, self.config)

    @property
    def baseline_label(self) -> str:
        """Backend and configuration that it was timed beside; empty if it was not timed."""
        return label_of(self.measurement.baseline, self.measurement.baseline_config) if self.measurement else ""

    @property
    def reference_label(self) -> str:
        """Backend and configuration that its speed-up refers to; empty if it was not timed."""
        return (self.measurement.reference or self.baseline_label) if self.measurement else ""

    @property
    def speedup_text(self) -> str:
        """Speed-up of a trial that was measured, with its interval, in words."""
        assert self.measurement is not None
        interval = self.measurement.speedup_interval.spelled()
        return f"{self.measurement.speedup:.3g} times as fast as {self.reference_label} (95 %: {interval})"

    @property
    def evidence(self) -> EvidenceRank:
        """Rank of the evidence that it gives."""
        if self.measurement is None:
            return EvidenceRank.NONE
        return rank_of(self.phase, self.state == "disturbed", len(self.measurement.clean))

    @property
    def identity(self) -> tuple[str, ...]:
        """Silicon, libraries, problem, source and configuration; trials that share them are repetitions."""
        return (
            self.machine.silicon_id,
            self.machine.software_id,
            self.problem.key,
            self.inputs_label,
            self.backend,
            self.source_hash,
            config_key(self.config),
        )

    def to_json(self) -> dict[str, Any]:
        """Return this trial as JSON values."""
        return {
            "id": self.id,
            "phase": self.phase,
            "op": self.problem.op,
            "problem": self.problem.key,
            "inputs_label": self.inputs_label,
            "backend": self.backend,
            "source_hash": self.source_hash,
            "config": dict(self.config),
            "state": self.state,
            "verdict": self.verdict and self.verdict.to_json(),
            "measurement": self.measurement and self.measurement.to_json(),
            "reason": self.reason,
            "machine": self.machine.to_json(),
            "seed": self.seed,
            "started_at": self.started_at,
            "duration_s": self.duration_s,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Trial:
        """Return the trial that `to_json` wrote, today or in an older schema."""
        verdict = values["verdict"] and Verdict.from_json(values["verdict"])
        measurement = values["measurement"] and Measurement.from_json(values["measurement"])
        state, reason = values["state"], values["reason"]
        if state in ("ok", "pruned") and not measurement.clean:  # schema 2 knew no state of its own for these
            state, reason = "disturbed", reason or measurement.blocks[0].disturbed
        problem = registry.parse_problem(values["problem"], values.get("op", registry.DEFAULT_OP))
        return cls(
            **{
                **{name: value for name, value in values.items() if name != "op"},
                "phase": "comparison" if values["phase"] == "race" else values["phase"],
                "problem": problem,
                "state": state,
                "reason": reason,
                "verdict": verdict,
                "measurement": measurement,
                "machine": Machine.from_json(values["machine"]),
            }
        )


def label_of(backend: str, config: Mapping[str, Value]) -> str:
    """Return backend and configuration in one line: "chunked chunk=32 threads=2"."""
    return " ".join((backend, *(f"{name}={value}" for name, value in config.items())))


def spelled_state(state: str) -> str:
    """Return a state in words: a backend that is rejected may be right and fast, and only takes no part."""
    return "takes no part" if state == "rejected" else state


def log_ratio(trial: Trial) -> float:
    """Return log(time / time of the reference) of a trial that was measured."""
    assert trial.measurement is not None
    return trial.measurement.log_ratio


def error_of(trial: Trial) -> float:
    """Return the largest error of any tensor of a verified trial, as a share of that tensor's largest value."""
    assert trial.verdict is not None
    return trial.verdict.worst


class RecordError(Exception):
    """Line that cannot be read as a record; the message says why."""


class NewerSchemaError(RecordError):
    """Record of a newer scanlab."""


def encode(trial: Trial) -> bytes:
    """Return `trial` as one line with its checksum and its line end."""
    body = json.dumps({"schema": SCHEMA, "trial": trial.to_json()}, separators=(",", ":")).encode()[1:]
    return b'{"crc32":"%08x",%s\n' % (zlib.crc32(body), body)


def decode(line: bytes) -> Trial:
    """Return the trial of one line that `encode` wrote, without its line end.

    Raises:
        NewerSchemaError: If a newer scanlab wrote it.
        RecordError: If it is damaged, or of a version that is not understood.
    """
    head, body = line[:20], line[20:]
    if head != b'{"crc32":"%08x",' % zlib.crc32(body):
        raise RecordError("its checksum does not match")
    try:
        record = json.loads(b"{" + body)
        schema = record["schema"]
        if schema > SCHEMA:
            raise NewerSchemaError(f"it has schema {schema}; this scanlab reads up to {SCHEMA}")
        trial = read_trial(record["trial"])
    except UNREADABLE as error:
        raise RecordError(f"its content is not understood: {type(error).__name__}: {error}") from error
    return trial


def read_trial(values: Mapping[str, Any]) -> Trial:
    """Return the trial that `Trial.to_json` wrote; one of UNREADABLE for values that cannot be ordered and printed."""
    trial = Trial.from_json(values)
    check_field_types(trial)
    if not (0 <= trial.started_at < MAX_TIME_S and math.isfinite(trial.duration_s)):
        raise ValueError(f"started_at={trial.started_at} and duration_s={trial.duration_s} are not times")
    if trial.machine.silicon.usable_cpus < 1:
        raise ValueError(f"usable_cpus={trial.machine.silicon.usable_cpus}: must be positive")
    verdict = trial.verdict
    if verdict is not None and not verdict.errors.keys() <= verdict.tolerances.keys():
        raise ValueError("an error of the verdict has no tolerance")
    measured = trial.measurement
    if measured is not None and (measured.peak_bytes or 0) < 0:
        raise ValueError(f"peak_bytes={measured.peak_bytes}: must not be negative")
    blocks = () if measured is None else (*measured.blocks, *measured.reference_blocks)
    # Of every block: where all were disturbed, the measurement as a whole has no ratio, and is a record all the same.
    if not all(math.isfinite(block.log_ratio) for block in blocks):
        raise ValueError("the times of the measurement have no ratio")
    return trial


def check_field_types(instance: Any) -> None:
    """Raise TypeError or ValueError, with the place, if a field does not match its annotation.

    Known annotations are numbers, booleans, text, None, literals, unions, tuples of one type, mappings and further
    dataclasses.
    """
    for name, annotation in _annotations(type(instance)).items():  # type: ignore[arg-type]  # type[Any] has a hash
        _check_type(getattr(instance, name), annotation, name)


@functools.cache
def _annotations(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _check_type(value: Any, annotation: Any, place: str) -> None:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        kind = next((each for each in arguments if _is_of(value, each)), None)
        if kind is None:
            raise TypeError(f"{place} is {type(value).__name__}, must be {annotation}")
        _check_type(value, kind, place)
    elif not _is_of(value, annotation):
        raise TypeError(f"{place} is {type(value).__name__}, must be {getattr(annotation, '__name__', annotation)}")
    elif origin is tuple:
        for index, item in enumerate(value):
            _check_type(item, arguments[0], f"{place}[{index}]")
    elif origin is Mapping:
        for key, item in value.items():
            _check_type(key, arguments[0], f"a key of {place}")
            _check_type(item, arguments[1], f"{place}[{key!r}]")
    elif isinstance(value, str):
        value.encode()  # a lone surrogate can be neither printed nor written
    elif isinstance(value, int) and abs(value) > MAX_INT:
        raise ValueError(f"{place} is out of range")
    elif dataclasses.is_dataclass(value):
        check_field_types(value)


def _is_of(value: Any, annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin is Literal:
        return value in get_args(annotation)
    if origin in (tuple, Mapping):
        return isinstance(value, origin)
    if annotation in (int, float):  # JSON writes a whole float without its point
        return isinstance(value, (int, annotation)) and not isinstance(value, bool)
    return isinstance(value, annotation)
