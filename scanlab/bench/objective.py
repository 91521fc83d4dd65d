"""Objectives of a comparison: the median or the 95th percentile of the time of one call, paired within clean rounds.

A round's samples are taken relative to the baseline's median in that round, so that a disturbance of the whole machine
for a while cancels. The median of a candidate is that of its rounds' medians; its 95th percentile is that of the pooled
samples of all its rounds, because a round has too few samples to have a tail of its own.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from scanlab.bench.samples import Block, by_process, clean
from scanlab.bench.stats import UNKNOWN, Array, Interval, interval_of_median, percentiles, resampled

Objective = Literal["median", "p95"]

TAIL = 0.95


class Difference(NamedTuple):
    """log(time of one / time of another), and its interval, which is unknown if too few samples tell."""

    value: float
    interval: Interval


def level(blocks: Sequence[Block], objective: Objective) -> Difference:
    """Return log(time / the baseline's median time) by the clean rounds; NaN without any."""
    usable = clean(blocks)
    if not usable:
        return Difference(math.nan, UNKNOWN)
    if objective == "median":
        ratios = by_process(usable)
        return Difference(statistics.median(block.log_ratio for block in usable), interval_of_median(ratios))
    return _tail_difference(_in_processes([(block, block) for block in usable]), 0.95, subtracts=False)


def difference(
    one: Sequence[Block], other: Sequence[Block], objective: Objective, confidence: float = 0.95
) -> Difference:
    """Return log(time of one / time of other) by the clean rounds of both; NaN without a common one."""
    pairs = pairs_of(one, other)
    if not pairs:
        return Difference(math.nan, UNKNOWN)
    if objective == "median":
        values = [[first.log_ratio - second.log_ratio for first, second in process] for process in pairs]
        median = statistics.median(value for process in values for value in process)
        return Difference(median, interval_of_median(values, confidence))
    return _tail_difference(pairs, confidence, subtracts=True)


def pairs_of(one: Sequence[Block], other: Sequence[Block]) -> list[list[tuple[Block, Block]]]:
    """Return the blocks of the rounds that are clean in both, one list for each process."""
    theirs = {(block.process, block.round): block for block in clean(other)}
    mine = [block for block in clean(one) if (block.process, block.round) in theirs]
    return _in_processes([(block, theirs[block.process, block.round]) for block in mine])


def smallest_ratio(one: Sequence[Block], other: Sequence[Block], objective: Objective) -> float:
    """Return the smallest log(time of one / time of other) of any common clean round.

    By the medians of the round; for a tail by the fastest sample of one and the slowest of the other, so that no
    percentile of theirs can be nearer.
    """
    rounds = [pair for process in pairs_of(one, other) for pair in process]
    if objective == "median":
        return min(first.log_ratio - second.log_ratio for first, second in rounds)
    return min(float(_relative(first).min() - _relative(second).max()) for first, second in rounds)


def _in_processes(pairs: Sequence[tuple[Block, Block]]) -> list[list[tuple[Block, Block]]]:
    found: dict[int, list[tuple[Block, Block]]] = {}
    for pair in pairs:
        found.setdefault(pair[0].process, []).append(pair)
    return list(found.values())


def _relative(block: Block) -> Array:
    """Return log(sample / the baseline's median) of each sample of a block."""
    relative: Array = np.log(np.asarray(block.candidate_ns, dtype=float) / statistics.median(block.baseline_ns))
    return relative


def _tail_difference(pairs: Sequence[Sequence[tuple[Block, Block]]], confidence: float, subtracts: bool) -> Difference:
    """Return the difference of the 95th percentiles, or that of the first of each pair alone.

    Its interval is unknown if all samples may lie below the true percentile by a chance that is not small enough.
    """
    rounds = [pair for process in pairs for pair in process]
    counts = [sum(len(pair[side].candidate_ns) for pair in rounds) for side in (0, 1)]
    size = max(len(block.candidate_ns) for pair in rounds for block in pair)
    # By process, round, side of the pair, and sample; where a process has fewer samples in a round, some count twice.
    tables = [
        np.array([[np.resize(_relative(block), size) for block in pair] for pair in process]) for process in pairs
    ]

    def tails(drawn: Array) -> Array:
        first, second = (np.quantile(drawn[:, :, side].reshape(len(drawn), -1), TAIL, axis=1) for side in (0, 1))
        return first - second if subtracts else first

    value = float(tails(np.concatenate(tables)[None])[0])
    if TAIL ** min(counts) > (1 - confidence) / 2:
        return Difference(value, UNKNOWN)
    return Difference(value, percentiles(tails(resampled(tables)), confidence))
