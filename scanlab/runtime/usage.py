"""Usage of a program: how often it asks for each problem, and how long its forward ops take."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scanlab.contract.base import Problem
from scanlab.contract.problem import ScanProblem
from scanlab.errors import InputError


@dataclass(frozen=True)
class Usage:
    """Number of calls for one problem, and the seconds that they took in all."""

    calls: int = 0
    seconds: float = 0.0


class UsageLog:
    """Usage of each problem so far; several threads may add to it."""

    def __init__(self) -> None:
        self._usage: dict[Problem, Usage] = {}
        self._lock = threading.Lock()

    def add(self, problem: Problem, seconds: float) -> None:
        """Add one call."""
        with self._lock:
            before = self._usage.get(problem, Usage())
            self._usage[problem] = Usage(before.calls + 1, before.seconds + seconds)

    @property
    def usage(self) -> dict[Problem, Usage]:
        """The usage by problem, the one that takes longest first.

        The parts of a front that is composed are there beside the front.
        """
        with self._lock:
            return dict(sorted(self._usage.items(), key=lambda item: item[1].seconds, reverse=True))

    @property
    def scans(self) -> dict[ScanProblem, Usage]:
        """The usage of scans, the one that takes longest first."""
        return {problem: each for problem, each in self.usage.items() if isinstance(problem, ScanProblem)}


class UsageFile:
    """File for the usage of a program, opened before the program starts and written after it has ended.

    The program may change the working folder meanwhile, and may fork: the process that opened the file writes it alone.

    Raises:
        InputError: If the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._owner = os.getpid()
        try:
            self.path = path.resolve()
            if self.path.is_dir():
                raise IsADirectoryError("it is a folder")
            self._part = self.path.with_name(f"{self.path.name}.{self._owner}.part")
            self._file = self._part.open("w", encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{path}: cannot be written: {reason}. Name a file in a folder that can.") from error

    @property
    def is_ours(self) -> bool:
        """True where this process opened the file, and is no fork of the one that did."""
        return os.getpid() == self._owner

    def write(self, text: str) -> None:
        """Write the file whole; an empty text leaves no file and an earlier one as it was."""
        if not self.is_ours:
            return
        try:
            with self._file:
                self._file.write(text)
            if text:
                self._part.replace(self.path)
        except OSError as error:
            raise InputError(f"{self.path}: the usage could not be written: {error.strerror}.") from error
        finally:
            self._part.unlink(missing_ok=True)


_active: list[UsageLog] = []


@contextmanager
def log_usage() -> Iterator[UsageLog]:
    """Log every op that dispatchers serve in this process, in any thread, while the block runs."""
    log = UsageLog()
    _active.append(log)
    try:
        yield log
    finally:
        _active.remove(log)


def active() -> tuple[UsageLog, ...]:
    """Return the logs that are being written now."""
    return tuple(_active)
