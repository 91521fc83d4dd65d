"""Trial records on disk: append-only, checksummed, one file for each process; a crash loses only what was in flight.

A line is {"crc32":"xxxxxxxx",...}: the checksum is over every byte between its own comma and the end of
the line, so that a damaged line shows without parsing it. Lines are written by one write() and synced.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from scanlab.bench.samples import Measurement
from scanlab.contract.machine import Machine
from scanlab.contract.problem import ScanProblem
from scanlab.contract.space import Value, config_key
from scanlab.contract.verify import Verdict
from scanlab.errors import ResultsError

Phase = Literal["search", "race", "holdout", "lengths"]
State = Literal["ok", "wrong", "rejected", "crashed", "pruned"]

# 2: a pacer in the stead of a slow anchor; heat and frequency around a block. What 1 lacks is optional.
SCHEMA = 2


def new_id() -> str:
    """An identifier that no other trial has."""
    return secrets.token_hex(8)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One configuration of one backend, tried on one problem.

    phase         search (looking for the best), race (finalists side by side, to choose), holdout (the chosen on
                  fresh inputs, to publish) or lengths (time against length)
    inputs_label  where the inputs came from
    source_hash   of the backend, when it was tried
    state         ok; wrong (disagreed with the oracle); rejected (the backend does not solve the problem, or
                  cannot run here); crashed (it raised); pruned (measured until it was clearly too slow)
    reason        why the state is not ok
    started_at    seconds since the epoch
    duration_s    building, proving and measuring
    """

    phase: Phase
    problem: ScanProblem
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
            raise ValueError(f"{self.label} has a measurement without a passed verdict: prove it first.")
        if (self.state in ("ok", "pruned")) != (self.measurement is not None):
            raise ValueError(
                f"{self.label} is {self.state}: a trial has a measurement exactly when it is ok or pruned."
            )
        if (self.state == "ok") != (self.reason is None):
            raise ValueError(f"{self.label} is {self.state}: a trial has a reason exactly when it is not ok.")

    @property
    def label(self) -> str:
        """Backend and configuration, as a person would name them."""
        return label_of(self.backend, self.config)

    @property
    def anchor_label(self) -> str:
        """Backend and configuration that it was timed beside; empty where it was not timed."""
        return label_of(self.measurement.anchor, self.measurement.anchor_config) if self.measurement else ""

    @property
    def speedup_spelled(self) -> str:
        """How fast a trial that was measured was beside its anchor, and how sure that is, in words."""
        assert self.measurement is not None
        interval = self.measurement.speedup_interval.spelled()
        return f"{self.measurement.speedup:.3g} times as fast as {self.anchor_label} (95 %: {interval})"

    @property
    def identity(self) -> tuple[str, ...]:
        """What makes two trials repetitions of one another: silicon, libraries, problem, source, configuration."""
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
        """This trial as JSON values."""
        return {
            "id": self.id,
            "phase": self.phase,
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
        """The trial that `to_json` wrote."""
        verdict, measurement = values["verdict"], values["measurement"]
        return cls(
            **{
                **values,
                "problem": ScanProblem.parse(values["problem"]),
                "verdict": verdict and Verdict.from_json(verdict),
                "measurement": measurement and Measurement.from_json(measurement),
                "machine": Machine.from_json(values["machine"]),
            }
        )


def label_of(backend: str, config: Mapping[str, Value]) -> str:
    """Backend and configuration in one line: "chunked chunk=32 threads=2"."""
    return " ".join((backend, *(f"{name}={value}" for name, value in config.items())))


def log_ratio(trial: Trial) -> float:
    """log(time / anchor's time) of a trial that was measured."""
    assert trial.measurement is not None
    return trial.measurement.log_ratio


def error_of(trial: Trial) -> float:
    """The largest error of any tensor of a trial that was proved, as a share of that tensor's largest value."""
    assert trial.verdict is not None
    return trial.verdict.worst


class Loaded(NamedTuple):
    """The trials of a results folder in the order they were started, and what was found wrong with it."""

    trials: tuple[Trial, ...]
    notices: tuple[str, ...]


class Results:
    """The trials of one results folder, in `trials/*.jsonl`.

    Any number of processes may append at once: each writes to a file of its own. Nothing is ever rewritten.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._descriptor: int | None = None
        self._owner = 0

    def prepare(self) -> None:
        """Create the folder; raises ResultsError where nothing can be written to it."""
        try:
            self._records.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._records):
                pass
        except OSError as error:
            raise self._unwritable(error) from error

    def append(self, trial: Trial) -> None:
        """Write `trial` to disk; when this returns it survives a crash. Raises ResultsError where it cannot."""
        line = encode(trial)
        try:
            descriptor = self._open()
            written = os.write(descriptor, line)
            os.fsync(descriptor)
        except OSError as error:
            self._abandon_file()
            raise self._unwritable(error) from error
        if written != len(line):
            self._abandon_file()
            raise ResultsError(
                f"{self.folder}: only {written} of {len(line)} bytes of a record could be written. Free some space."
            )

    def load(self) -> Loaded:
        """Every trial that can be read; what cannot be read is left in place and said in the notices."""
        trials: dict[str, Trial] = {}
        notices: list[str] = []
        for path in sorted(self._records.glob("*.jsonl")):
            try:
                lines = path.read_bytes().split(b"\n")
            except OSError as error:
                raise ResultsError(f"{path}: {error.strerror}. Make it readable, or name another folder.") from error
            newer = 0
            for number, line in enumerate(lines, start=1):
                if not line:
                    continue
                try:
                    trial = decode(line)
                except _NewerSchemaError:
                    newer += 1
                except _DamagedError as damage:
                    where = "unfinished record at the end" if number == len(lines) else f"line {number}"
                    notices.append(f"{path}: {where} ({len(line)} bytes) skipped: {damage}")
                else:
                    trials.setdefault(trial.id, trial)
            if newer:
                notices.append(f"{path}: {newer} records of a newer scanlab kept but not read; upgrade to use them")
        ordered = sorted(trials.values(), key=lambda trial: trial.started_at)
        return Loaded(tuple(ordered), tuple(notices))

    @property
    def _records(self) -> Path:
        return self.folder / "trials"

    def _open(self) -> int:
        # A forked child must not share its parent's file: two writers could interleave on some file systems.
        if self._descriptor is None or self._owner != os.getpid():
            self._records.mkdir(parents=True, exist_ok=True)
            self._owner = os.getpid()
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{self._owner}-{secrets.token_hex(3)}.jsonl"
            self._descriptor = os.open(self._records / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        return self._descriptor

    def _abandon_file(self) -> None:
        """Leave a file whose end is in doubt alone: the next record starts a new one."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _unwritable(self, error: OSError) -> ResultsError:
        return ResultsError(
            f"{self.folder}: cannot write results: {error.strerror}."
            " Name a folder that you may write to and that has space, with --out."
        )


class _DamagedError(Exception):
    """A line that is not a whole record."""


class _NewerSchemaError(Exception):
    """A whole record, written by a newer scanlab."""


def encode(trial: Trial) -> bytes:
    """`trial` as one line with its checksum."""
    body = json.dumps({"schema": SCHEMA, "trial": trial.to_json()}, separators=(",", ":")).encode()[1:]
    return b'{"crc32":"%08x",%s\n' % (zlib.crc32(body), body)


def decoded(line: bytes) -> Trial | None:
    """The trial of one line, or None where it is damaged or of a newer scanlab."""
    try:
        return decode(line)
    except (_DamagedError, _NewerSchemaError):
        return None


def decode(line: bytes) -> Trial:
    """The trial of one line without its line end."""
    head, body = line[:20], line[20:]
    if head != b'{"crc32":"%08x",' % zlib.crc32(body):
        raise _DamagedError("its checksum does not match")
    record = json.loads(b"{" + body)
    if record["schema"] > SCHEMA:
        raise _NewerSchemaError
    return Trial.from_json(record["trial"])
