"""What may not take longer than it was given is interrupted, whatever it does."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# The alarm rings again, and again: an import must not be interrupted, and Python swallows what is raised while it
# clears up after an object.
SNOOZE_S = 0.5


class OutOfTimeError(BaseException):
    """The time for something ran out while it ran. Not an Exception: a backend must not swallow it."""


@contextmanager
def time_limit(deadline: float) -> Iterator[None]:
    """Raise OutOfTimeError in the block when time.monotonic() reaches `deadline`.

    A timer signal interrupts Python and what Python waits for, compilers too, but not a running kernel. An import
    is let through to its end: half of one would stay behind, and break whatever imports it again. In another thread
    than the main one, and where there are no timer signals, the block is not interrupted.
    """
    able = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not able or deadline == math.inf:
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        if not _imports(frame):
            raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(1e-3, deadline - time.monotonic()), SNOOZE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _imports(frame: FrameType | None) -> bool:
    """Whether the code that runs in `frame` runs for an import."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
