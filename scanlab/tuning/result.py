"""Events of a tuning under way, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scanlab.bench.objective import Objective
from scanlab.bench.ranking import Comparison, Gain
from scanlab.bench.records import Trial
from scanlab.contract.base import Problem
from scanlab.contract.evidence import EvidenceRank
from scanlab.runtime.profile import ProfileEntry

EventKind = Literal["building", "started", "finished", "skipped", "waiting", "round"]


@dataclass(frozen=True)
class Event:
    """Something that happened in a tuning, for a progress display.

    Attributes:
        kind: Building a default; started or finished a trial; skipped something (then `message` says why); waiting for
            a quiet machine or for other processes; a round of a comparison.
        label: The backend and configuration, or the comparison.
        done: Share of the budget that is used.
        left_s: Time left, about.
        trial: The finished one.
        best: The fastest of the search so far.
    """

    kind: EventKind
    label: str
    elapsed_s: float
    left_s: float
    done: float
    trial: Trial | None = None
    best: Trial | None = None
    message: str | None = None


@dataclass(frozen=True)
class TuningResult:
    """Outcome of a tuning.

    Attributes:
        inputs_label: Origin of the inputs.
        objective: The time that the winner was chosen by.
        trials: Every trial of this problem on this machine that the search rests on, older ones too.
        failed: Trials of the backends that take no part, with their reasons.
        new: Number of trials that this run made.
        winner: The configuration to deploy; None if too little was measured to name one.
        comparison: The hold-out comparison where it named a winner, else the one that chose; None without any.
        tied: Labels of the candidates that a comparison could not distinguish from the winner.
        exhausted: Backends whose every configuration has been tried.
        notices: Everything that was skipped or repaired, and why.
        interrupted: Whether a person stopped it.
        too_busy: Why nothing could be measured undisturbed, where that is so.
        elapsed_s: Everything, from the first build on.
        measuring_s: The part of it that counts for the budget.
        waited_s: Waiting for a quiet machine.
    """

    problem: Problem
    inputs_label: str
    objective: Objective
    trials: tuple[Trial, ...]
    failed: tuple[Trial, ...]
    new: int
    winner: Trial | None
    comparison: Comparison | None
    tied: frozenset[str]
    exhausted: tuple[str, ...]
    notices: tuple[str, ...]
    interrupted: bool
    elapsed_s: float
    too_busy: str | None = None
    measuring_s: float = 0.0
    waited_s: float = 0.0

    @property
    def entry(self) -> ProfileEntry | None:
        """Profile entry of the winner; None without one."""
        if self.winner is None:
            return None
        evidence = {"why": self.why, "trial": self.winner.to_json()}
        winner = self.winner
        return ProfileEntry(winner.problem, winner.backend, winner.source_hash, winner.config, evidence)

    @property
    def evidence(self) -> EvidenceRank:
        """Rank of the evidence that the winner rests on."""
        return EvidenceRank.NONE if self.winner is None else self.winner.evidence

    @property
    def gain(self) -> Gain | None:
        """Gain of the winner over the untuned choice; None if it is that choice, or if nothing was compared."""
        return None if self.comparison is None else self.comparison.gain

    @property
    def why(self) -> str:
        """Sentence that names the winner and says why."""
        if self.comparison is not None:
            return self.comparison.why
        if self.too_busy is not None:
            return f"No winner: the machine was too busy to measure anything ({self.too_busy}). Try again later."
        if self.interrupted:
            return "No winner: it was interrupted before the choice was finished, and what served before serves on."
        return "No winner: no configuration that may win could be timed."
