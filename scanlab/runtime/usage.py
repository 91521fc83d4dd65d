"""Usage of a program: how often it asks for each problem, and how long its forward ops take."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from scanlab.contract.base import Problem
from scanlab.contract.files import expect_regular, write_atomically
from scanlab.contract.problem import ScanProblem
from scanlab.errors import InputError


@dataclass(frozen=True)
class Usage:
    """Number of calls for one problem, and the seconds that they took in all."""

    calls: int = 0
    seconds: float = 0.0


# A file of usage is written at each of the first problems, which a program has in its first steps, and then at a call
# this long after the last time.
MAX_PROMPT = 100
SAVE_S = 1.0


class UsageLog:
    """Usage of each problem so far; several threads may add to it. A fork of the process adds nothing.

    Args:
        on_add: Called after each call with whether its problem is new.
    """

    def __init__(self, on_add: Callable[[UsageLog, bool], None] = lambda log, is_new: None) -> None:
        self._usage: dict[Problem, Usage] = {}
        self._on_add = on_add
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def add(self, problem: Problem, seconds: float) -> None:
        """Add one call."""
        if os.getpid() != self._owner:  # of which another thread may have held the lock when it forked
            return
        with self._lock:
            before = self._usage.get(problem, Usage())
            self._usage[problem] = Usage(before.calls + 1, before.seconds + seconds)
        self._on_add(self, before.calls == 0)

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
    """File for the usage of a program, written while it runs and again after its end.

    The program may change the working folder meanwhile, may fork, and may end without a word: the process that named
    the file writes it alone, and each time whole.

    Raises:
        InputError: If the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._saved, self._saved_at = 0, 0.0
        try:
            self.path = path.resolve()
            expect_regular(self.path)
            part = self.path.with_name(f"{self.path.name}.{self._owner}.part")
            part.touch()
            part.unlink()
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{path}: cannot be written: {reason}. Name a file in a folder that can.") from error

    @property
    def is_ours(self) -> bool:
        """True if this process named the file, rather than the one that it was forked from."""
        return os.getpid() == self._owner

    def write(self, text: str) -> None:
        """Write the file whole; an empty text leaves no file and an earlier one as it was.

        Raises:
            InputError: If it can no longer be written.
        """
        if not self.is_ours or not text:
            return
        try:
            with self._lock:
                write_atomically(self.path, text)
        except OSError as error:
            raise InputError(f"{self.path}: the usage could not be written: {error.strerror}.") from error

    def save(self, text: Callable[[], str], is_new: bool) -> None:
        """Write the file while the program runs, at new problems and otherwise seldom; `write` reports what fails.

        Args:
            text: Returns the content.
            is_new: Whether a problem was added since the last time.
        """
        now = time.monotonic()
        is_prompt = is_new and self._saved < MAX_PROMPT
        if not self.is_ours or not (is_prompt or now - self._saved_at > SAVE_S):
            return
        self._saved, self._saved_at = self._saved + is_prompt, now
        with suppress(InputError):
            self.write(text())


_active: list[UsageLog] = []


@contextmanager
def log_usage(on_add: Callable[[UsageLog, bool], None] = lambda log, is_new: None) -> Iterator[UsageLog]:
    """Log every op that dispatchers serve in this process, in any thread, while the block runs.

    Args:
        on_add: As `UsageLog` takes it.
    """
    log = UsageLog(on_add)
    _active.append(log)
    try:
        yield log
    finally:
        _active.remove(log)


def active() -> tuple[UsageLog, ...]:
    """Return the logs that are being written now."""
    return tuple(_active)
