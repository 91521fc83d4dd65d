"""What was measured: blocks of samples, taken beside an anchor, and what they say of a candidate."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from scanlab.bench.stats import UNKNOWN, Interval, bootstrap, interval_of_median
from scanlab.contract.space import Value

# Fewer undisturbed blocks than this are no sample: then the disturbed ones are used too.
FEWEST_CLEAN_BLOCKS = 3


@dataclass(frozen=True)
class Block:
    """A run of samples so short that the machine hardly changes within it.

    candidate_ns    nanoseconds of one call, one for each sample, in the order they were taken
    anchor_ns       the same for the anchor
    order           who was timed when: c candidate, a anchor, o others in a race
    round           blocks of one round and process share their anchor samples and can be compared in pairs
    process         which process took it, counted from 0
    throttled       periods in which the cgroup ran out of its quota; None where the system does not tell
    steal_ms        time the hypervisor gave to others
    involuntary     context switches that this process did not ask for
    neighbours_ms   CPU time that other processes on this machine used
    overheated      times that the CPUs were slowed because they were too hot
    mhz             their frequency at the end
    disturbed       why this block was taken again, or None
    """

    candidate_ns: tuple[int, ...]
    anchor_ns: tuple[int, ...]
    order: str
    round: int = 0
    process: int = 0
    throttled: int | None = None
    steal_ms: float | None = None
    involuntary: int | None = None
    neighbours_ms: float | None = None
    overheated: int | None = None
    mhz: float | None = None
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
    anchor_calls    the same for what it was timed beside
    build_ms        compiling and allocating
    first_call_ms   the first call, which may compile too
    peak_bytes      memory that one call takes beyond what was in use before it; None where it cannot be known
    blocks          of the candidate, beside the anchor or beside its pacer
    pacer           what was timed in the stead of an anchor that is slow; None where it was the anchor itself
    anchor_blocks   the anchor's own blocks beside the pacer; none without one
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
    pacer: str | None = None
    anchor_blocks: tuple[Block, ...] = ()

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ValueError("a measurement needs at least one block")
        if (self.pacer is None) != (not self.anchor_blocks):
            raise ValueError("a measurement beside a pacer needs the anchor's blocks beside it, and no other does")

    @cached_property
    def used(self) -> tuple[Block, ...]:
        """The undisturbed blocks, or every block where too few are undisturbed."""
        return undisturbed(self.blocks)

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
        """Median time of one call of the anchor, in the same blocks or in its own beside the pacer."""
        own = [sample for block in undisturbed(self.anchor_blocks) for sample in block.candidate_ns]
        return _quartiles_ms(own or [sample for block in self.used for sample in block.anchor_ns])[1]

    @cached_property
    def pace_log_ratio(self) -> float:
        """log(pacer / anchor), by the anchor's blocks; 0 without a pacer."""
        return -statistics.median([block.log_ratio for block in undisturbed(self.anchor_blocks)] or [0.0])

    @property
    def log_ratios(self) -> list[float]:
        """log(candidate / anchor) by each block, a pacer's ratio to the anchor taken as exact."""
        return [block.log_ratio + self.pace_log_ratio for block in self.used]

    @cached_property
    def log_ratio(self) -> float:
        """Median over the blocks of log(candidate / anchor), each taken within its block."""
        return statistics.median(self.log_ratios)

    @cached_property
    def paced_interval(self) -> Interval:
        """Bootstrap interval of `log_ratio` that takes a pacer's ratio to the anchor as exact.

        For comparing measurements beside one pacer: they share what that ratio is off by. For a search, which has to
        decide by a few blocks: it is as sure as those can be, which is less than 95 % where they are fewer than six.
        """
        low, high = bootstrap(by_process(self.used))
        return Interval(low + self.pace_log_ratio, high + self.pace_log_ratio)

    @cached_property
    def log_ratio_interval(self) -> Interval:
        """95 % interval of `log_ratio`, wider by that of a pacer's ratio to the anchor; see `interval_of_median`."""
        own = interval_of_median(by_process(self.used))
        if not self.anchor_blocks:
            return own
        anchors = interval_of_median(by_process(undisturbed(self.anchor_blocks)))
        return Interval(own.low - anchors.high, own.high - anchors.low) if own.known and anchors.known else UNKNOWN

    @property
    def speedup(self) -> float:
        """How many times faster than the anchor."""
        return math.exp(-self.log_ratio)

    @property
    def speedup_interval(self) -> Interval:
        """95 % interval of `speedup`; from 0 to infinity where there are too few blocks for one."""
        return Interval(math.exp(-self.log_ratio_interval.high), math.exp(-self.log_ratio_interval.low))

    def to_json(self) -> dict[str, Any]:
        """This measurement as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Measurement:
        """The measurement that `to_json` wrote."""
        blocks = {
            name: tuple(map(Block.from_json, values[name])) for name in ("blocks", "anchor_blocks") if name in values
        }
        return cls(**{**values, **blocks})


def undisturbed(blocks: Sequence[Block], fewest: int = FEWEST_CLEAN_BLOCKS) -> tuple[Block, ...]:
    """The undisturbed blocks, or every block where fewer than `fewest` are undisturbed."""
    clean = tuple(block for block in blocks if block.disturbed is None)
    return clean if len(clean) >= fewest else tuple(blocks)


def by_process(blocks: Sequence[Block]) -> list[list[float]]:
    """The log ratios of `blocks`, one list for each process that took some."""
    processes = sorted({block.process for block in blocks})
    return [[block.log_ratio for block in blocks if block.process == process] for process in processes]


def _quartiles_ms(samples_ns: Sequence[int]) -> tuple[float, float, float]:
    if len(samples_ns) == 1:
        return (samples_ns[0] / 1e6,) * 3
    first, middle, third = statistics.quantiles(samples_ns, n=4, method="inclusive")
    return first / 1e6, middle / 1e6, third / 1e6
