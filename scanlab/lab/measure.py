"""Blocks of interleaved samples: a candidate and an anchor timed side by side, and what was going on around them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from scanlab.lab.intervals import Interval, bootstrap
from scanlab.space import Value

# Fewer undisturbed blocks than this are no sample: then the disturbed ones are used too.
FEWEST_CLEAN_BLOCKS = 3


@dataclass(frozen=True)
class Block:
    """A run of samples so short that the machine hardly changes within it.

    candidate_ns    nanoseconds of one call, one for each sample, in the order they were taken
    anchor_ns       the same for the anchor
    order           who was timed when: c candidate, a anchor, o others in a race
    process         which process took it, counted from 0
    throttled       periods in which the cgroup ran out of its quota; None where the system does not tell
    steal_ms        time the hypervisor gave to others
    involuntary     context switches that this process did not ask for
    neighbours_ms   CPU time that other processes on this machine used
    disturbed       why this block was taken again, or None
    """

    candidate_ns: tuple[int, ...]
    anchor_ns: tuple[int, ...]
    order: str
    process: int = 0
    throttled: int | None = None
    steal_ms: float | None = None
    involuntary: int | None = None
    neighbours_ms: float | None = None
    disturbed: str | None = None

    @property
    def log_ratio(self) -> float:
        """log(candidate / anchor) of the medians within this block; negative where the candidate is faster."""
        return math.log(statistics.median(self.candidate_ns) / statistics.median(self.anchor_ns))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Block:
        """The block that `asdict` wrote."""
        return cls(**{**values, "candidate_ns": tuple(values["candidate_ns"]), "anchor_ns": tuple(values["anchor_ns"])})


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The samples of one candidate beside those of its anchor.

    calls           calls in one sample of the candidate; its time is divided by them
    anchor_calls    the same for the anchor
    build_ms        compiling and allocating
    first_call_ms   the first call, which may compile too
    peak_bytes      memory that one call takes beyond what was in use before it; None where it cannot be known
    """

    anchor: str
    anchor_config: Mapping[str, Value]
    anchor_source_hash: str
    calls: int
    anchor_calls: int
    build_ms: float
    first_call_ms: float
    peak_bytes: int | None
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ValueError("a measurement needs at least one block")

    @cached_property
    def used(self) -> tuple[Block, ...]:
        """The undisturbed blocks, or every block where too few are undisturbed."""
        clean = tuple(block for block in self.blocks if block.disturbed is None)
        return clean if len(clean) >= FEWEST_CLEAN_BLOCKS else self.blocks

    @property
    def disturbed_blocks(self) -> int:
        """How many blocks were disturbed from outside."""
        return sum(block.disturbed is not None for block in self.blocks)

    @cached_property
    def quartiles_ms(self) -> tuple[float, float, float]:
        """First quartile, median and third quartile of one call."""
        return _quartiles_ms([sample for block in self.used for sample in block.candidate_ns])

    @property
    def median_ms(self) -> float:
        """Median time of one call."""
        return self.quartiles_ms[1]

    @cached_property
    def anchor_median_ms(self) -> float:
        """Median time of one call of the anchor, in the same blocks."""
        return _quartiles_ms([sample for block in self.used for sample in block.anchor_ns])[1]

    @cached_property
    def log_ratio(self) -> float:
        """Median over the blocks of log(candidate / anchor), each taken within its block."""
        return statistics.median(block.log_ratio for block in self.used)

    @cached_property
    def log_ratio_interval(self) -> Interval:
        """95 % bootstrap interval of `log_ratio`."""
        return bootstrap(by_process(self.used))

    @property
    def speedup(self) -> float:
        """How many times faster than the anchor."""
        return math.exp(-self.log_ratio)

    @property
    def speedup_interval(self) -> Interval:
        """95 % bootstrap interval of `speedup`."""
        return Interval(math.exp(-self.log_ratio_interval.high), math.exp(-self.log_ratio_interval.low))

    def to_json(self) -> dict[str, Any]:
        """This measurement as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Measurement:
        """The measurement that `to_json` wrote."""
        return cls(**{**values, "blocks": tuple(Block.from_json(block) for block in values["blocks"])})


def by_process(blocks: Sequence[Block]) -> list[list[float]]:
    """The log ratios of `blocks`, one list for each process that took some."""
    processes = sorted({block.process for block in blocks})
    return [[block.log_ratio for block in blocks if block.process == process] for process in processes]


def _quartiles_ms(samples_ns: Sequence[int]) -> tuple[float, float, float]:
    if len(samples_ns) == 1:
        return (samples_ns[0] / 1e6,) * 3
    first, middle, third = statistics.quantiles(samples_ns, n=4, method="inclusive")
    return first / 1e6, middle / 1e6, third / 1e6
