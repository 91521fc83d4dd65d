"""Estimates and intervals of paired ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 2000


class Interval(NamedTuple):
    """A range that the true value lies in, with the confidence it was computed for."""

    low: float
    high: float

    @property
    def known(self) -> bool:
        """True if there were values enough for bounds."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def spelled(self, digits: str = ".3g") -> str:
        """Return the bounds as text, such as "2.24 to 2.41", or "unknown"."""
        return f"{self.low:{digits}} to {self.high:{digits}}" if self.known else "unknown"


UNKNOWN = Interval(-math.inf, math.inf)


def interval_of_median(values: Sequence[Sequence[float]], confidence: float = 0.95) -> Interval:
    """Return the `bootstrap` interval, or UNKNOWN if there are too few values for the confidence.

    All of n values lie on one side of the true median with a chance of 2 / 2**n, so that no interval within
    their range can be surer than that; resampling alone would take two lucky ones for certainty.
    """
    count = sum(map(len, values))
    return UNKNOWN if 2.0 ** (1 - count) > 1 - confidence else bootstrap(values, confidence)


def bootstrap(values: Sequence[Sequence[float]], confidence: float = 0.95) -> Interval:
    """Return the percentile interval of the median, resampled first by process and then by block.

    Args:
        values: One sequence for each process, holding one value for each block.
        confidence: Probability that the interval covers the median.
    """
    tables = [np.asarray(process, dtype=float) for process in values if len(process)]
    if not tables:
        raise ValueError("no values: an interval needs at least one block")
    return percentiles(np.median(resampled(tables), axis=1), confidence)


def resampled(tables: Sequence[Array]) -> Array:
    """Return RESAMPLES samples of all blocks, drawn first by process and then by block.

    Processes differ more from each other than blocks within one do, so that resampling blocks alone would claim too
    much. Every process weighs the same; a single one is resampled by block only. Deterministic.

    Args:
        tables: One for each process, whose first axis is that of the blocks.

    Source: Kalibera and Jones 2013, Rigorous benchmarking in reasonable time, section 9 (repeat, and
    resample, at the level where variation arises).
    """
    rng = np.random.default_rng(0)
    sizes = np.array([len(table) for table in tables])
    padded = np.stack([np.resize(table, (sizes.max(), *table.shape[1:])) for table in tables])
    chosen = (
        rng.integers(len(tables), size=(RESAMPLES, len(tables), 1)) if len(tables) > 1 else np.zeros((1, 1, 1), int)
    )
    positions = (rng.random((RESAMPLES, len(tables), sizes.max())) * sizes[chosen]).astype(int)
    drawn: Array = padded[chosen, positions].reshape(RESAMPLES, -1, *padded.shape[2:])
    return drawn


def percentiles(values: Array, confidence: float) -> Interval:
    """Return the interval that holds the share `confidence` of `values`, as many below it as above."""
    low, high = np.quantile(values, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(low), float(high))
