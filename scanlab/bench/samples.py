"""Samples of a candidate in blocks beside a baseline, and the times and ratios that they give."""

from __future__ import annotations

import ast
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from scanlab.bench.stats import UNKNOWN, Interval, bootstrap, interval_of_median
from scanlab.contract.space import Value

# Names of fields in records of schema 2 and before.
OLD_BLOCK_NAMES = {"anchor_ns": "baseline_ns"}
OLD_NAMES = {
    "anchor": "baseline",
    "anchor_config": "baseline_config",
    "anchor_source_hash": "baseline_source_hash",
    "anchor_calls": "baseline_calls",
}


@dataclass(frozen=True)
class Block:
    """Samples taken in so short a time that the machine hardly changes within it.

    Attributes:
        candidate_ns: Nanoseconds of one call, one for each sample, in the order they were taken.
        baseline_ns: The same for the baseline.
        order: Who was timed when: c candidate, b baseline, o others of the round ("a" for b in old records).
        round: Blocks of one round and process share their baseline samples and can be compared in pairs.
        process: Number of the process that took it, counted from 0.
        throttled: Periods in which the cgroup ran out of its quota; None if the system does not tell.
        steal_ms: Time that the hypervisor gave to others.
        involuntary: Involuntary context switches of this process.
        neighbours_ms: CPU time that other processes on this machine used.
        overheated: Times that the CPUs were slowed because they were too hot.
        mhz: Frequency of the CPUs at the end.
        disturbed: Reason not to trust the samples, or None for a clean block.
    """

    candidate_ns: tuple[int, ...]
    baseline_ns: tuple[int, ...]
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
        """log(candidate / baseline) of the medians within this block; negative where the candidate is faster."""
        return math.log(statistics.median(self.candidate_ns) / statistics.median(self.baseline_ns))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Block:
        """Return the block that `asdict` wrote, today or under the names of an older schema."""
        named = {OLD_BLOCK_NAMES.get(name, name): value for name, value in values.items()}
        samples = {name: tuple(named[name]) for name in ("candidate_ns", "baseline_ns")}
        return cls(**{**named, **samples})


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Samples of one candidate beside the baseline; every number comes from its clean blocks.

    A number is NaN, and an interval unknown, where there is no clean block, or too few for an interval.

    Attributes:
        baseline: Name of the backend that every block was timed beside.
        calls: Calls in one sample of the candidate; its time is divided by them.
        baseline_calls: The same for the baseline.
        build_ms: Compiling and allocating.
        first_call_ms: The first call, which may compile too.
        peak_bytes: Memory that one call takes beyond the memory in use before it; None if it cannot be known.
        blocks: The candidate's blocks beside the baseline.
        reference: Label of the reference loop that speed-ups refer to; None if they refer to the baseline itself.
        reference_blocks: The reference's own blocks beside the baseline; empty without one.
    """

    baseline: str
    baseline_config: Mapping[str, Value]
    baseline_source_hash: str
    calls: int
    baseline_calls: int
    build_ms: float
    first_call_ms: float
    peak_bytes: int | None
    blocks: tuple[Block, ...]
    reference: str | None = None
    reference_blocks: tuple[Block, ...] = ()

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ValueError("a measurement needs at least one block")
        if (self.reference is None) != (not self.reference_blocks):
            raise ValueError("a measurement has the blocks of a reference exactly when it names one")

    @cached_property
    def clean(self) -> tuple[Block, ...]:
        """The blocks that nothing disturbed."""
        return clean(self.blocks)

    @property
    def disturbed_blocks(self) -> int:
        """Number of blocks that were disturbed from outside."""
        return len(self.blocks) - len(self.clean)

    @cached_property
    def quartiles_ms(self) -> tuple[float, float, float]:
        """First quartile, median and third quartile of one call."""
        return _quartiles_ms([sample for block in self.clean for sample in block.candidate_ns])

    @property
    def median_ms(self) -> float:
        """Median time of one call."""
        return self.quartiles_ms[1]

    @cached_property
    def p95_ms(self) -> float:
        """95th percentile of the time of one call."""
        samples = [sample for block in self.clean for sample in block.candidate_ns]
        return statistics.quantiles(samples, n=20, method="inclusive")[-1] / 1e6 if len(samples) > 1 else math.nan

    @cached_property
    def reference_median_ms(self) -> float:
        """Median time of one call of the reference, or of the baseline where there is none."""
        own = [sample for block in clean(self.reference_blocks) for sample in block.candidate_ns]
        return _quartiles_ms(own or [sample for block in self.clean for sample in block.baseline_ns])[1]

    @cached_property
    def baseline_log_ratio(self) -> float:
        """Median over the clean blocks of log(candidate / baseline), each taken within its block."""
        return _median([block.log_ratio for block in self.clean])

    @cached_property
    def baseline_interval(self) -> Interval:
        """Bootstrap interval of `baseline_log_ratio`, for a search, which has to decide by few blocks.

        As sure as those can be, which is less than 95 % where they are fewer than six; unknown without any.
        """
        return bootstrap(by_process(self.clean)) if self.clean else UNKNOWN

    @cached_property
    def reference_log_ratio(self) -> float:
        """log(reference / baseline); 0 if the baseline is the reference."""
        return _median([block.log_ratio for block in clean(self.reference_blocks)]) if self.reference else 0.0

    @property
    def log_ratio(self) -> float:
        """log(candidate / reference): the ratio to the baseline less that of the reference."""
        return self.baseline_log_ratio - self.reference_log_ratio

    @cached_property
    def log_ratio_interval(self) -> Interval:
        """95 % interval of `log_ratio`: that of the ratio to the baseline, wider by that of the reference."""
        own = interval_of_median(by_process(self.clean))
        if self.reference is None:
            return own
        reference = interval_of_median(by_process(clean(self.reference_blocks)))
        if not (own.known and reference.known):
            return UNKNOWN
        # The two are independent: their half-widths add in squares.
        low = self.log_ratio - math.hypot(self.baseline_log_ratio - own.low, reference.high - self.reference_log_ratio)
        high = self.log_ratio + math.hypot(own.high - self.baseline_log_ratio, self.reference_log_ratio - reference.low)
        return Interval(low, high)

    @property
    def speedup(self) -> float:
        """Time of the reference over that of the candidate: reference / baseline times baseline / candidate."""
        return math.exp(-self.log_ratio)

    @property
    def speedup_interval(self) -> Interval:
        """95 % interval of `speedup`; from 0 to infinity where there are too few blocks for one."""
        return Interval(math.exp(-self.log_ratio_interval.high), math.exp(-self.log_ratio_interval.low))

    def to_json(self) -> dict[str, Any]:
        """Return this measurement as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Measurement:
        """Return the measurement that `to_json` wrote, today or under the names of an older schema."""
        named = {OLD_NAMES.get(name, name): value for name, value in values.items()}
        named |= {"blocks": tuple(map(Block.from_json, named["blocks"]))}
        reference_blocks = named.pop("anchor_blocks", None) or named.get("reference_blocks", ())
        named |= {"reference_blocks": tuple(map(Block.from_json, reference_blocks))}
        pacer = named.pop("pacer", None)
        if pacer is not None:  # schema 2: blocks beside a pacer, whose ratio to a slow anchor was measured apart
            reference = " ".join((named["baseline"], *(f"{k}={v}" for k, v in named["baseline_config"].items())))
            backend, *settings = pacer.split()
            config = {name: _literal(text) for name, _, text in (each.partition("=") for each in settings)}
            named |= {
                "baseline": backend,
                "baseline_config": config,
                "baseline_source_hash": "",
                "reference": reference,
            }
        return cls(**named)


def clean(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Return the blocks that nothing disturbed."""
    return tuple(block for block in blocks if block.disturbed is None)


def by_process(blocks: Sequence[Block]) -> list[list[float]]:
    """Return the log ratios of `blocks`, one list for each process that took some."""
    processes = sorted({block.process for block in blocks})
    return [[block.log_ratio for block in blocks if block.process == process] for process in processes]


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


def _quartiles_ms(samples_ns: Sequence[int]) -> tuple[float, float, float]:
    if len(samples_ns) < 2:
        return (samples_ns[0] / 1e6 if samples_ns else math.nan,) * 3
    first, middle, third = statistics.quantiles(samples_ns, n=4, method="inclusive")
    return first / 1e6, middle / 1e6, third / 1e6


def _literal(text: str) -> Value:
    try:
        value: Value = ast.literal_eval(text)
        return value
    except (SyntaxError, ValueError):
        return text
