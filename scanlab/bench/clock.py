"""Clock of the time spent on measuring; tests give it another source of time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

# A machine is quiet after this time without a disturbance.
QUIET_S = 0.2


class MeasuringClock:
    """Monotonic seconds since its creation, without those that are left out, as builds are.

    Args:
        source: Monotonic seconds.
    """

    def __init__(self, source: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._started = source()
        self._paused_s = 0.0

    def now(self) -> float:
        """Return the seconds of measuring so far."""
        return self.elapsed_s() - self._paused_s

    def elapsed_s(self) -> float:
        """Return the seconds since the creation, pauses included."""
        return self._source() - self._started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time that the block takes out of `now`."""
        begun = self._source()
        try:
            yield
        finally:
            self.leave_out(self._source() - begun)

    def leave_out(self, seconds: float) -> None:
        """Leave the last `seconds` out of `now`."""
        self._paused_s += seconds


class QuietWait:
    """Waiting for a busy machine to calm down, with a limit of its own.

    Args:
        limit_s: Longest total time of waiting.
        clock: Paused while waiting, unless that `counts`.
        disturbance: Watches the machine for a number of seconds; returns what disturbed it, or None.
        on_wait: Called with the reason after each look at a machine that is still busy.
        counts: Whether the time is part of what the clock measures.

    Attributes:
        left_s: Remaining time of the limit.
        waited_s: All waiting so far.
    """

    def __init__(
        self,
        limit_s: float,
        clock: MeasuringClock,
        disturbance: Callable[[float], str | None],
        on_wait: Callable[[str], None] = lambda reason: None,
        counts: bool = False,
    ) -> None:
        self._counts = counts
        self.left_s = limit_s
        self.waited_s = 0.0
        self._clock = clock
        self._disturbance = disturbance
        self._on_wait = on_wait

    def __call__(self) -> None:
        """Wait until nothing disturbs for a moment, or until the limit is used up."""
        with nullcontext() if self._counts else self._clock.paused():
            while self.left_s > 0:
                begun = self._clock.elapsed_s()
                reason = self._disturbance(QUIET_S)
                took_s = self._clock.elapsed_s() - begun
                self.left_s -= took_s
                self.waited_s += took_s
                if reason is None:
                    return
                self._on_wait(reason)
