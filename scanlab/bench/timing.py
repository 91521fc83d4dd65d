"""Blocks of interleaved samples: candidates timed beside a baseline, with the state of the system around them."""

from __future__ import annotations

import ctypes
import gc
import itertools
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.utils.benchmark
from torch import Tensor

from scanlab.bench import system_state
from scanlab.bench.samples import Block
from scanlab.contract import registry
from scanlab.contract.backend import OpFn
from scanlab.contract.base import Problem
from scanlab.contract.cpu import torch_threads
from scanlab.contract.op import Inputs, copy_with_strides, map_tensors, tensors_of

# A sample lasts at least this long, so that reading the clock (some 50 ns) and waking threads do not count.
SAMPLE_S = 2e-3
# Samples of one candidate in one block: more of the short ones, whose spread is larger, so that a block lasts long
# enough for other processes to show in the system's counters, which step by 10 ms; fewer of the long ones.
BLOCK_SAMPLES = 3
MAX_SAMPLES = 9
SHORT_BLOCK_S = 0.02
BLOCK_S = 0.1
# A call of this duration calibrates itself: a verified candidate has been called before.
LONG_CALL_S = 0.05
# Calls go through copies of the inputs in turn, so that a scan does not find them in the cache where its last call left
# them; with more than this nothing is gained, because the copies exceed most caches.
MAX_COPIES_BYTES = 32 << 20
MAX_COPIES = 4


@dataclass(frozen=True)
class TimedCall:
    """A function without arguments, calibrated for timing.

    Attributes:
        call: One call, on the next of the input copies.
        calls: Calls in one sample.
        samples: Samples in one block.
        call_s: Duration of one call, as the calibration saw it.
    """

    call: Callable[[], object]
    device: str
    threads: int
    calls: int
    samples: int
    call_s: float

    @property
    def block_s(self) -> float:
        """Duration of the samples of one block, about."""
        return block_s(self.calls, self.samples, self.call_s)


def block_s(calls: int, samples: int, call_s: float) -> float:
    """Return the duration of a block of `samples` samples, with the call that precedes a sample of several."""
    return samples * (calls + (calls > 1)) * call_s


def input_copies(inputs: Inputs) -> tuple[Inputs, ...]:
    """Return `inputs` and copies of them in other memory with the same strides, as many as are cheap."""
    size = sum(tensor.untyped_storage().nbytes() for each in inputs for tensor in tensors_of(each).values())
    copies = max(1, min(MAX_COPIES, MAX_COPIES_BYTES // max(1, size)))
    return (inputs, *(tuple(map_tensors(copy_with_strides, each) for each in inputs) for _ in range(copies - 1)))


def call_of(function: OpFn, problem: Problem, copies: Sequence[Inputs]) -> Callable[[], object]:
    """Return one call of `function` on the next of `copies`, with the backward pass where the problem has gradients."""
    call = _training_call(function, problem, copies) if problem.gradients else _inference_call(function, copies)
    return torch.set_grad_enabled(problem.gradients)(call)


def calibrate(call: Callable[[], object], device: str, threads: int) -> TimedCall:
    """Warm `call` up and find how many calls make a sample.

    One call that takes long is enough. Otherwise `torch.utils.benchmark.Timer.blocked_autorange` sets torch's threads,
    synchronizes the device and grows the number of calls. Candidates are calibrated one after another, so that the
    result decides nothing else.
    """
    call_s = _sample_ns(TimedCall(call, device, threads, calls=1, samples=1, call_s=0.0)) / 1e9
    if call_s < LONG_CALL_S:
        timer = torch.utils.benchmark.Timer("call()", globals={"call": call}, num_threads=threads)
        call_s = timer.blocked_autorange(min_run_time=SAMPLE_S).median
    calls = max(1, math.ceil(SAMPLE_S / call_s))
    return TimedCall(call, device, threads, calls, samples_in_block(calls * call_s), call_s)


def samples_in_block(sample_s: float) -> int:
    """Return how many samples of this duration a candidate has in one block."""
    wanted = min(MAX_SAMPLES, max(BLOCK_SAMPLES, int(SHORT_BLOCK_S / sample_s)))
    return max(1, min(wanted, int(BLOCK_S / sample_s)))


def take_round(
    candidates: Sequence[TimedCall],
    baseline: TimedCall,
    rng: random.Random,
    number: int = 0,
    process: int = 0,
    before_sample: Callable[[int], None] = lambda position: None,
) -> tuple[Block, ...]:
    """Take one block for each candidate, all with the samples of one baseline, in random order.

    Args:
        candidates: May hold one of them twice, as the A/A control does.
        baseline: Timed beside them.
        rng: Draws the order.
        number: Number of the round.
        process: Number of the process.
        before_sample: Called with the position of the candidate before each of its samples; -1 is the baseline.
    """
    everyone = {-1: baseline, **dict(enumerate(candidates))}
    schedule = [position for position, timed in everyone.items() for _ in range(timed.samples)]
    rng.shuffle(schedule)
    taken: dict[int, list[int]] = {position: [] for position in everyone}
    before = system_state.snapshot()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for position in schedule:
            before_sample(position)
            taken[position].append(_sample_ns(everyone[position]))
    finally:
        if collecting:
            gc.enable()
    delta = before.until(system_state.snapshot())
    return tuple(
        Block(
            candidate_ns=tuple(taken[position]),
            baseline_ns=tuple(taken[-1]),
            order="".join("b" if each < 0 else "c" if each == position else "o" for each in schedule),
            round=number,
            process=process,
            throttled=delta.throttled,
            steal_ms=delta.steal_ms,
            involuntary=delta.involuntary,
            neighbours_ms=delta.neighbours_ms,
            overheated=delta.overheated,
            mhz=delta.mhz,
            disturbed=delta.disturbed,
        )
        for position in range(len(candidates))
    )


def peak_bytes(call: Callable[[], object], device: str, threads: int) -> int | None:
    """Return the bytes that one call takes beyond the memory in use before it; None if the system cannot tell.

    On CUDA the allocator's own count. On Linux the growth of the resident set, by any allocator: memory that the
    allocators hold in reserve is released first, and the system's high-water mark is reset.
    """
    with torch_threads(threads):
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - before
        try:
            _release_reserves()
            Path("/proc/self/clear_refs").write_text("5")
            before = _resident_bytes("VmRSS")
            call()
            return max(0, _resident_bytes("VmHWM") - before)
        except (OSError, AttributeError, LookupError):
            return None


def _release_reserves() -> None:
    """Return malloc's reserve to the system, and page out lazily freed memory, which counts until then."""
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


def _sample_ns(timed: TimedCall) -> int:
    with torch_threads(timed.threads):
        if timed.calls > 1:  # a short call would otherwise pay for the threads and caches that another candidate left
            timed.call()
        _synchronize(timed.device)
        start = time.perf_counter_ns()
        for _ in range(timed.calls):
            timed.call()
        _synchronize(timed.device)
        return max(1, round((time.perf_counter_ns() - start) / timed.calls))


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _inference_call(function: OpFn, copies: Sequence[Inputs]) -> Callable[[], object]:
    following = itertools.cycle(copies)
    return lambda: function(*next(following))


def _training_call(function: OpFn, problem: Problem, copies: Sequence[Inputs]) -> Callable[[], object]:
    following = itertools.cycle([tuple(map_tensors(_leaf, each) for each in inputs) for inputs in copies])
    names = registry.op(problem.op).timed_outputs
    ones: list[Tensor] = []

    def call() -> object:
        inputs = next(following)
        leaves = [tensor for each in inputs for tensor in tensors_of(each).values() if tensor.requires_grad]
        outputs = function(*inputs)
        wanted = [getattr(outputs, name) for name in names] or list(outputs)
        if not ones:
            ones.extend(torch.ones_like(output) for output in wanted)
        return torch.autograd.grad(wanted, leaves, ones, allow_unused=True)

    return call


def _leaf(tensor: Tensor) -> Tensor:
    """Return `tensor` as a leaf that has a gradient, unless it holds integers."""
    detached = tensor.detach()
    return detached.requires_grad_(tensor.is_floating_point() or tensor.is_complex())
