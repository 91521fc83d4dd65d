"""Blocks of interleaved samples: candidates and an anchor timed side by side, and what was going on around them."""

from __future__ import annotations

import ctypes
import gc
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.utils.benchmark
from torch import Tensor

from scanlab.backend import ScanFn
from scanlab.lab import surroundings
from scanlab.lab.intervals import UNKNOWN, Interval, bootstrap, interval_of_median
from scanlab.problem import ScanInputs, ScanProblem
from scanlab.space import Config, Value
from scanlab.threads import torch_threads, usable_threads

# A sample lasts at least this long, so that reading the clock (some 50 ns) and waking threads are no part of it.
SAMPLE_S = 2e-3
# Samples of one arm in one block: more of the short ones, whose spread is larger, so that a block lasts long enough
# for neighbours to show in the system's counts, which step by 10 ms; fewer of the long ones.
BLOCK_SAMPLES = 3
MOST_SAMPLES = 9
SHORT_BLOCK_S = 0.02
BLOCK_S = 0.1
# One call of this length is a pilot by itself: what was proved has been called before.
LONG_CALL_S = 0.05
# Inputs take turns, so that a scan does not find them in the cache where its last call left them; with
# copies beyond this nothing is gained, because they exceed most caches.
ROTATION_BYTES = 32 << 20
ROTATION_COPIES = 4

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


@dataclass(frozen=True)
class Arm:
    """A scan with its inputs, ready to be timed.

    call     one call, on the next of its inputs
    calls    calls in one sample
    samples  samples in one block
    cost_s   what its samples in one block take together, about
    """

    call: Callable[[], object]
    device: str
    threads: int
    calls: int
    samples: int
    cost_s: float


def rotation(inputs: tuple[ScanInputs, ...]) -> tuple[tuple[ScanInputs, ...], ...]:
    """`inputs`, and copies of them in other memory with the same strides, as many as are cheap."""
    size = sum(tensor.untyped_storage().nbytes() for each in inputs for tensor in each.tensors().values())
    copies = max(1, min(ROTATION_COPIES, ROTATION_BYTES // max(1, size)))
    return (inputs, *(tuple(_copy(each) for each in inputs) for _ in range(copies - 1)))


def shuffled(inputs: ScanInputs, groups: int, seed: int) -> ScanInputs:
    """`inputs` with the channels of each group in another order, in other memory with the same strides.

    The numbers are distributed as before, and every channel has its own still; an answer that was kept for the
    old inputs is wrong for these.
    """
    generator = torch.Generator().manual_seed(seed)
    dim = inputs.u.shape[1]
    size = dim // groups
    order = torch.cat([group * size + torch.randperm(size, generator=generator) for group in range(groups)])
    order = order.to(inputs.u.device)
    axes = {"u": 1, "delta": 1, "z": 1, "initial_state": 1, "A": 0, "D": 0, "delta_bias": 0}
    axes |= {name: 0 for name in ("B", "C") if getattr(inputs, name).dim() == 2}
    copied = _copy(inputs)
    for name, axis in axes.items():
        tensor = getattr(inputs, name)
        if tensor is not None:
            getattr(copied, name).copy_(tensor.index_select(axis, order))
    return copied


def call_of(scan: ScanFn, problem: ScanProblem, turns: Sequence[tuple[ScanInputs, ...]]) -> Callable[[], object]:
    """What is timed: one call of `scan` on the next of `turns`, with the backward pass where there are gradients."""
    call = _training_call(scan, turns) if problem.gradients else _inference_call(scan, turns)
    return torch.set_grad_enabled(problem.gradients)(call)


def arm(call: Callable[[], object], problem: ScanProblem, config: Config) -> Arm:
    """`call` after a pilot that warms it up and finds how many calls make a sample.

    One call that takes long is enough. Otherwise `torch.utils.benchmark.Timer.blocked_autorange` holds torch's
    threads, synchronises the device and grows the number of calls. The pilot times one scan after another, so it
    decides nothing else.
    """
    threads = int(config.get("threads", usable_threads()))
    call_s = _sample_ns(Arm(call, problem.device, threads, calls=1, samples=1, cost_s=0.0)) / 1e9
    if call_s < LONG_CALL_S:
        timer = torch.utils.benchmark.Timer("call()", globals={"call": call}, num_threads=threads)
        call_s = timer.blocked_autorange(min_run_time=SAMPLE_S).median
    calls = max(1, math.ceil(SAMPLE_S / call_s))
    samples = samples_in_block(calls * call_s)
    return Arm(call, problem.device, threads, calls, samples, samples * (calls + (calls > 1)) * call_s)


def samples_in_block(sample_s: float) -> int:
    """How many samples of this length one arm has in one block."""
    wanted = min(MOST_SAMPLES, max(BLOCK_SAMPLES, int(SHORT_BLOCK_S / sample_s)))
    return max(1, min(wanted, int(BLOCK_S / sample_s)))


def take_round(
    arms: Sequence[Arm], anchor: Arm, rng: random.Random, number: int = 0, process: int = 0
) -> tuple[Block, ...]:
    """One block for each arm, all with the samples of one anchor, taken in random order."""
    schedule = [one for one in (*arms, anchor) for _ in range(one.samples)]
    rng.shuffle(schedule)
    taken: dict[int, list[int]] = {id(one): [] for one in schedule}
    before = surroundings.look()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for one in schedule:
            taken[id(one)].append(_sample_ns(one))
    finally:
        if collecting:
            gc.enable()
    change = before.until(surroundings.look())
    return tuple(
        Block(
            candidate_ns=tuple(taken[id(one)]),
            anchor_ns=tuple(taken[id(anchor)]),
            order="".join("a" if each is anchor else "c" if each is one else "o" for each in schedule),
            round=number,
            process=process,
            throttled=change.throttled,
            steal_ms=change.steal_ms,
            involuntary=change.involuntary,
            neighbours_ms=change.neighbours_ms,
            overheated=change.overheated,
            mhz=change.mhz,
            disturbed=change.disturbed,
        )
        for one in arms
    )


def peak_bytes(one: Arm) -> int | None:
    """Memory that one call takes beyond what is in use before it; None where the system cannot tell.

    On CUDA the allocator's own count. On Linux the growth of the resident set, whatever allocates: memory
    that the allocators hold in reserve is handed back first, and the system's high-water mark is reset.
    """
    with torch_threads(one.threads):
        if one.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            one.call()
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - before
        try:
            _hand_back()
            Path("/proc/self/clear_refs").write_text("5")
            before = _resident_bytes("VmRSS")
            one.call()
            return max(0, _resident_bytes("VmHWM") - before)
        except (OSError, AttributeError, LookupError):
            return None


def _hand_back() -> None:
    """Empty malloc's reserve, and have the system take what it was offered: pages that count until then."""
    libc, page_out = ctypes.CDLL(None), 21
    libc.malloc_trim(0)
    start = end = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *words = line.split()
        if not name.endswith(":"):
            start, end = (int(address, 16) for address in name.split("-"))
        elif name == "LazyFree:" and words[0] != "0":
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), page_out)


def _resident_bytes(field: str) -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0]) * 1024


def _sample_ns(one: Arm) -> int:
    with torch_threads(one.threads):
        if one.calls > 1:  # a short call would otherwise pay for the threads and caches that the last arm left
            one.call()
        _synchronize(one.device)
        start = time.perf_counter_ns()
        for _ in range(one.calls):
            one.call()
        _synchronize(one.device)
        return max(1, round((time.perf_counter_ns() - start) / one.calls))


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _inference_call(scan: ScanFn, turns: Sequence[tuple[ScanInputs, ...]]) -> Callable[[], object]:
    following = itertools.cycle(turns)
    return lambda: scan(*next(following))


def _training_call(scan: ScanFn, turns: Sequence[tuple[ScanInputs, ...]]) -> Callable[[], object]:
    leaves = [tuple(_leaves(each) for each in inputs) for inputs in turns]
    following = itertools.cycle(leaves)
    grad_out = torch.ones_like(turns[0][0].u)

    def call() -> object:
        inputs = next(following)
        wanted = [tensor for each in inputs for tensor in each.tensors().values()]
        return torch.autograd.grad(scan(*inputs).out, wanted, grad_out, allow_unused=True)

    return call


def _leaves(inputs: ScanInputs) -> ScanInputs:
    return inputs.with_tensors(**{name: tensor.detach().requires_grad_() for name, tensor in inputs.tensors().items()})


def _copy(inputs: ScanInputs) -> ScanInputs:
    def copied(tensor: Tensor) -> Tensor:
        # Not clone(): it packs a tensor that is a view of a larger one, and a scan would then read other strides.
        empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        storage = tensor.untyped_storage().clone()
        return empty.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())

    return inputs.with_tensors(**{name: copied(tensor) for name, tensor in inputs.tensors().items()})
