"""Heartbeats from a thread of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable

from optuna.exceptions import UpdateFinishedTrialError

from scanlab.errors import ResultsError
from scanlab.tuning.fleet.process_identity import LEASE_S

# Between two heartbeats; several fit into the time after which a process of another host counts as dead.
BEAT_S = LEASE_S / 5


class Heartbeat(threading.Thread):
    """Calls `beat` every BEAT_S seconds until it is stopped, or the trial was ended by another process."""

    def __init__(self, beat: Callable[[], None]) -> None:
        super().__init__(name="scanlab-heartbeat", daemon=True)
        self._beat = beat
        self._stopped = threading.Event()

    def run(self) -> None:
        """Beat until stopped."""
        while not self._stopped.wait(BEAT_S):
            try:
                self._beat()
            except UpdateFinishedTrialError:
                return
            except ResultsError:  # the next use of the storage by the search reports it
                continue

    def stop(self) -> None:
        """End the thread at its next wait."""
        self._stopped.set()
