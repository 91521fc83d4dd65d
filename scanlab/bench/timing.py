"""Blocks of interleaved samples: candidates and an anchor timed side by side, and what was going on around them."""

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

from scanlab.bench import system_state as surroundings
from scanlab.bench.samples import Block
from scanlab.contract.backend import ScanFn
from scanlab.contract.cpu import thread_count, torch_threads
from scanlab.contract.problem import ScanInputs, ScanProblem
from scanlab.contract.space import Config

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
    threads = thread_count(config)
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


def peak_bytes(call: Callable[[], object], device: str, threads: int) -> int | None:
    """Memory that one call on so many threads takes beyond what is in use before it; None where the system cannot tell.

    On CUDA the allocator's own count. On Linux the growth of the resident set, whatever allocates: memory
    that the allocators hold in reserve is handed back first, and the system's high-water mark is reset.
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
            _hand_back()
            Path("/proc/self/clear_refs").write_text("5")
            before = _resident_bytes("VmRSS")
            call()
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
