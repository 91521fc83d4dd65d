"""What a tuning may take: time, or a number of trials."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scanlab.errors import ScanlabError


@dataclass(frozen=True)
class Budget:
    """How long a tuning may take, building and proving included, or how many trials it may make, or both."""

    seconds: float | None = None
    trials: int | None = None

    def __post_init__(self) -> None:
        if self.seconds is None and self.trials is None:
            raise ScanlabError("a budget needs seconds or trials; for example --budget 3m or --trials 50.")
        for noun, value in (("seconds", self.seconds), ("trials", self.trials)):
            if value is not None and not value > 0:
                raise ScanlabError(f"{noun}={value}: a budget must be more than 0.")


@dataclass(frozen=True)
class Clock:
    """A budget that runs since `started`, a value of time.monotonic()."""

    started: float
    budget: Budget

    def at(self, share: float) -> float:
        """When this share of the budget is used; never, for a budget of trials."""
        return math.inf if self.budget.seconds is None else self.started + share * self.budget.seconds
