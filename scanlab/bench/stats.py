"""Intervals for paired ratios: what the samples say, and how sure they are of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000


class Interval(NamedTuple):
    """A range that the true value lies in, with the confidence it was computed for."""

    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether there were values enough for bounds."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def spelled(self, digits: str = ".3g") -> str:
        """ "2.24 to 2.41", or "unknown"."""
        return f"{self.low:{digits}} to {self.high:{digits}}" if self.known else "unknown"


UNKNOWN = Interval(-math.inf, math.inf)


def interval_of_median(values: Sequence[Sequence[float]], confidence: float = 0.95) -> Interval:
    """The `bootstrap` interval, or UNKNOWN where there are too few values for the confidence.

    All of n values lie on one side of the true median with a chance of 2 / 2**n, so that no interval within
    their range can be surer than that; resampling alone would take two lucky ones for certainty.
    """
    count = sum(map(len, values))
    return UNKNOWN if 2.0 ** (1 - count) > 1 - confidence else bootstrap(values, confidence)


def bootstrap(values: Sequence[Sequence[float]], confidence: float = 0.95, seed: int = 0) -> Interval:
    """Percentile interval of the median, resampled first by process and then by block.

    values  one sequence for each process, holding one value for each block
    Processes differ more from each other than blocks within one do, so that resampling blocks alone would
    claim too much. Every process weighs the same; a single one is resampled by block only. Deterministic for
    a seed.

    Source: Kalibera and Jones 2013, Rigorous benchmarking in reasonable time, section 9 (repeat, and
    resample, at the level where variation arises).
    """
    rng = np.random.default_rng(seed)
    tables = [np.asarray(process, dtype=float) for process in values if len(process)]
    if not tables:
        raise ValueError("no values: an interval needs at least one block")
    tails = np.array([0.5 - confidence / 2, 0.5 + confidence / 2])
    sizes = np.array([len(table) for table in tables])
    padded = np.stack([np.resize(table, sizes.max()) for table in tables])
    chosen = (
        rng.integers(len(tables), size=(RESAMPLES, len(tables), 1)) if len(tables) > 1 else np.zeros((1, 1, 1), int)
    )
    positions = (rng.random((RESAMPLES, len(tables), sizes.max())) * sizes[chosen]).astype(int)
    medians = np.median(padded[chosen, positions].reshape(RESAMPLES, -1), axis=1)
    low, high = np.quantile(medians, tails)
    return Interval(float(low), float(high))
