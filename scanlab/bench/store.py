"""Append-only folder of trial records: one file for each process, nothing is ever rewritten."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import NamedTuple

from scanlab.bench.records import NewerSchemaError, RecordError, Trial, decode, encode
from scanlab.contract.files import expect_writable, sync
from scanlab.errors import ResultsError


class LoadedTrials(NamedTuple):
    """Trials of a results folder in the order they were started, and a notice for everything that was unreadable."""

    trials: tuple[Trial, ...]
    notices: tuple[str, ...]


class TrialStore:
    """The trials of one results folder, in `trials/*.jsonl`.

    Any number of processes may append at the same time, because each writes to a file of its own. A crash loses at
    most the record that was being written.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._descriptor: int | None = None
        self._owner = 0

    def prepare(self) -> None:
        """Create the folder.

        Raises:
            ResultsError: If nothing can be written to it.
        """
        try:
            expect_writable(self._records)
        except OSError as error:
            raise self._unwritable(error) from error

    def append(self, trial: Trial) -> None:
        """Write `trial` to disk; it survives a crash once this method has returned.

        Raises:
            ResultsError: If it cannot be written.
        """
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

    def load(self) -> LoadedTrials:
        """Return every readable trial; unreadable records stay where they are, each with a notice.

        Raises:
            ResultsError: If a file cannot be read at all.
        """
        trials: dict[str, Trial] = {}
        notices: list[str] = []
        for path in sorted(self._records.glob("*.jsonl")):
            if not path.is_file():  # a pipe would be waited for, and a device may never end
                notices.append(f"{path}: skipped, because it is not a regular file")
                continue
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
                except NewerSchemaError:
                    newer += 1
                except RecordError as error:
                    where = "unfinished record at the end" if number == len(lines) else f"line {number}"
                    notices.append(f"{path}: {where} ({len(line)} bytes) skipped: {error}")
                else:
                    trials.setdefault(trial.id, trial)
            if newer:
                notices.append(f"{path}: {newer} records of a newer scanlab kept but not read; upgrade to use them")
        ordered = sorted(trials.values(), key=lambda trial: trial.started_at)
        return LoadedTrials(tuple(ordered), tuple(notices))

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
            sync(self._records)
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
