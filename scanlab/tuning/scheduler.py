"""Budget of a tuning, and its division among the searches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scanlab.bench.clock import MeasuringClock
from scanlab.errors import ScanlabError
from scanlab.tuning.search import Search

# The parts of the budget that are kept for the comparison that chooses and for the hold-out comparison.
COMPARISON_SHARE = 0.18
HOLDOUT_SHARE = 0.14
SEARCH_SHARE = 1 - COMPARISON_SHARE - HOLDOUT_SHARE
# Each of them after a search that was given a number of trials and no time.
COMPARISON_S = 30.0
# Trials of every backend, its defaults among them, before the promising ones get the rest.
MIN_TRIALS = 4


@dataclass(frozen=True)
class Budget:
    """Limit of a tuning: seconds, or a number of trials, or both.

    The first build of every backend is beyond it; waiting for a busy machine is part of the seconds.
    """

    seconds: float | None = None
    trials: int | None = None

    def __post_init__(self) -> None:
        if self.seconds is None and self.trials is None:
            raise ScanlabError("a budget needs seconds or trials; for example --budget 3m or --trials 50.")
        for noun, value in (("seconds", self.seconds), ("trials", self.trials)):
            if value is not None and not value > 0:
                raise ScanlabError(f"{noun}={value}: a budget must be more than 0.")


class Scheduler:
    """Divides the budget among the searches: a few trials for each, then shares of time by speed.

    Args:
        on_skip: Called with a backend and the reason when its search ends before its space does.

    Attributes:
        new_trials: Number of trials that were made; the caller counts them.
        waiting: Backends whose remaining configurations are all being tried by other processes.
    """

    def __init__(
        self,
        searches: Sequence[Search],
        budget: Budget,
        clock: MeasuringClock,
        on_skip: Callable[[str, str], None] = lambda backend, reason: None,
    ) -> None:
        self._searches = searches
        self._budget = budget
        self._clock = clock
        self._on_skip = on_skip
        self._finished: set[str] = set()
        self.new_trials = 0
        self.waiting: set[str] = set()

    def at(self, share: float) -> float:
        """Return when this share of the budget is used; never, for a budget of trials."""
        return math.inf if self._budget.seconds is None else share * self._budget.seconds

    def comparison_ends(self, share: float) -> float:
        """Return when a comparison ends that may use up to this share of the budget."""
        return self._clock.now() + COMPARISON_S if self._budget.seconds is None else self.at(share)

    @property
    def done(self) -> float:
        """Share of the budget that is used."""
        seconds, trials = self._budget.seconds, self._budget.trials
        by_time = 0.0 if seconds is None else self._clock.now() / seconds
        by_trials = 0.0 if trials is None else self.new_trials / trials
        return min(1.0, max(by_time, by_trials))

    @property
    def left_s(self) -> float:
        """Seconds left, about."""
        elapsed_s, done = self._clock.now(), self.done
        by_pace = elapsed_s * (1 - done) / done if done > 0 else math.inf
        seconds = self._budget.seconds
        return by_pace if seconds is None else min(by_pace, max(0.0, seconds - elapsed_s))

    @property
    def running(self) -> list[Search]:
        """The searches that have not ended."""
        return [search for search in self._searches if search.backend.name not in self._finished]

    def finish(self, search: Search) -> None:
        """End `search`."""
        self._finished.add(search.backend.name)

    def next_search(self) -> Search | None:
        """Return the search whose turn it is, or None if time, trials or configurations are used up."""
        if self._budget.trials is not None and self.new_trials >= self._budget.trials:
            return None
        now, until = self._clock.now(), self.at(SEARCH_SHARE)
        for search in self.running:
            if search.left == 0:
                self.finish(search)
            elif now + search.expected_s > until:
                self.finish(search)
                left = {None: "other configurations", 1: "its last configuration"}
                rest = left.get(search.left, f"its other {search.left} configurations")
                self._on_skip(
                    search.backend.name,
                    f"{search.backend.name}: there is no time left for {rest}"
                    + (f" (about {search.expected_s:.1f} s each)" if search.expected_s else ""),
                )
        able = [each for each in self.running if each.backend.name not in self.waiting] or self.running
        for count in range(1, MIN_TRIALS + 1):
            behind = [each for each in able if len(each.trials) < count]
            behind = [each for each in behind if MIN_TRIALS * each.expected_s <= self.fair_s]
            if behind:
                return max(behind, key=lambda each: each.backend.rank)
        return min(able, key=lambda each: each.spent_s / self._promise(each), default=None)

    def time_for(self, search: Search) -> float:
        """Return the seconds that `search` may count on; none where there are more configurations than trials."""
        if self._budget.trials is not None:
            trials = (self._budget.trials - self.new_trials) / len(self.running)
            if search.left is not None and search.left > max(trials, MIN_TRIALS):
                return 0.0
        return self.fair_s

    @property
    def fair_s(self) -> float:
        """Time left for searching, in equal shares for all that still run."""
        return (self.at(SEARCH_SHARE) - self._clock.now()) / max(1, len(self.running))

    def _promise(self, search: Search) -> float:
        """Return the best speed of `search` as a share of the best of all, which is its share of the time too."""
        bests = [each.best_upper_end for each in self._searches]
        return math.exp(min(bests) - search.best_upper_end) if math.isfinite(search.best_upper_end) else 1.0
