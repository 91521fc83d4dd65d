"""Which problems a program really has: how often each is asked for, and how long its forward scans take."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from scanlab.contract.problem import ScanProblem


@dataclass(frozen=True)
class Usage:
    """How often a problem was asked for, and how long that took in all."""

    calls: int = 0
    seconds: float = 0.0


class Recording:
    """The usage of each problem so far; several threads may add to it."""

    def __init__(self) -> None:
        self._usage: dict[ScanProblem, Usage] = {}
        self._lock = threading.Lock()

    def add(self, problem: ScanProblem, seconds: float) -> None:
        """Note one call."""
        with self._lock:
            before = self._usage.get(problem, Usage())
            self._usage[problem] = Usage(before.calls + 1, before.seconds + seconds)

    @property
    def usage(self) -> dict[ScanProblem, Usage]:
        """The usage by problem, the one that takes longest first."""
        with self._lock:
            return dict(sorted(self._usage.items(), key=lambda item: item[1].seconds, reverse=True))


_active: list[Recording] = []


@contextmanager
def recording() -> Iterator[Recording]:
    """Note every scan that dispatchers serve in this process, in any thread, while the block runs."""
    made = Recording()
    _active.append(made)
    try:
        yield made
    finally:
        _active.remove(made)


def active() -> tuple[Recording, ...]:
    """The recordings that run now."""
    return tuple(_active)
