"""What a tuning says while it runs, and what it found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scanlab.bench.ranking import Race
from scanlab.bench.records import Trial

EventKind = Literal["started", "finished", "skipped", "waiting", "round"]


@dataclass(frozen=True)
class Event:
    """Something that happened in a tuning, for a progress display.

    kind       started or finished a trial, skipped something (then `message` says why), waiting for other
               processes, a round of the race
    label      the backend and configuration, or the race
    trial      the finished one
    best       the fastest of the search so far
    done       share of the budget that is used
    eta_s      time left, about
    """

    kind: EventKind
    label: str
    elapsed_s: float
    eta_s: float
    done: float
    trial: Trial | None = None
    best: Trial | None = None
    message: str | None = None


@dataclass(frozen=True)
class Tuned:
    """What a tuning found.

    trials       every trial of this problem on this machine that the search rests on, older ones too
    new          how many of them this run made
    fastest      the fastest of them that is exact enough, by the search alone
    race         the best of every backend side by side, from the hold-out run where there was one, else from the
                 race that chose; None where nothing could be raced
    tied         what the race that chose, or the hold-out run, could not tell from the winner
    exhausted    the backends whose every configuration has been tried
    notices      what was skipped or repaired, and why
    interrupted  whether a person stopped it
    """

    trials: tuple[Trial, ...]
    new: int
    fastest: Trial | None
    race: Race | None
    tied: frozenset[str]
    exhausted: tuple[str, ...]
    notices: tuple[str, ...]
    interrupted: bool
    elapsed_s: float

    @property
    def winner(self) -> Trial | None:
        """The configuration to deploy: the race's winner, or without a race the fastest of the search."""
        if self.race is not None and self.race.winner is not None:
            return self.race.winner.trial
        return self.fastest

    @property
    def why(self) -> str:
        """One sentence that names the winner and says why."""
        if self.race is not None and self.race.winner is not None:
            return self.race.why
        if self.winner is None:
            return "No winner: no configuration that may win could be timed."
        return f"{self.winner.label}: the fastest of the search; it was not raced, so that luck may have part in it."
