"""Timing of calls on a GPU by CUDA events, each behind a copy that hides the host, on rotating copies of the inputs.

`scanlab.bench` measures what a user waits for, host included. Here the host queues a call while the GPU still copies,
so that the events enclose the work of the GPU alone, which is what the limits of a GPU bound; the host is timed
separately. A call that takes the host longer than the copy, such as a loop in PyTorch, takes as long as the host does.
The copy also evicts the inputs from the caches.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import common
import numpy as np
import torch
from numpy.typing import NDArray

from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem, make_inputs

COPIES = 3
MIN_CALLS, MAX_CALLS, LIMIT_S = 3, 30, 0.7
COPIED_BYTES = 2**31
DRAWN_LENGTH = 64
Call = Callable[[], object]


class Times(NamedTuple):
    """Seconds of each call on the GPU, and of the host that queued it."""

    gpu_s: NDArray[np.float64]
    host_s: NDArray[np.float64]

    def columns(self) -> dict[str, float]:
        """Return the quartiles on the GPU, and the median of the host, by name."""
        return common.quartiles_s(self.gpu_s) | {"host_s": float(np.median(self.host_s))}


@functools.cache
def copy_call() -> tuple[Call, int]:
    """Return a call that copies, and the bytes that it reads and writes."""
    one = torch.empty(COPIED_BYTES // 2, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(one)
    return lambda: other.copy_(one), COPIED_BYTES


def times_s(calls: Sequence[Call], most: int = MAX_CALLS) -> Times:
    """Time the calls by turns, at most so often or until the limit of time; the first call of each warms up."""
    copy, _ = copy_call()
    gpu_s, host_s = [], []
    start = time.perf_counter()
    for turn in range(len(calls) + most):
        if turn >= len(calls) + MIN_CALLS and time.perf_counter() - start > LIMIT_S:
            break
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        copy()
        begin.record()
        queued = time.perf_counter()
        calls[turn % len(calls)]()
        host_s.append(time.perf_counter() - queued)
        end.record()
        end.synchronize()
        gpu_s.append(begin.elapsed_time(end) / 1e3)
    return Times(np.array(gpu_s[len(calls) :]), np.array(host_s[len(calls) :]))


def inputs_of(problem: ScanProblem, seed: int) -> tuple[ScanInputs, ...]:
    """Return inputs that repeat one short sequence, in memory of their own: drawing whole ones takes seconds."""
    short = problem.replace(batch=1, length=min(problem.length, DRAWN_LENGTH))
    times = torch.arange(problem.length, device=problem.device) % short.length

    def grown(tensor: torch.Tensor) -> torch.Tensor:
        whole = tensor.index_select(-1, times).expand(problem.batch, *(-1 for _ in tensor.shape[1:]))
        return whole.mT.contiguous().mT if tensor.stride(-1) > 1 else whole.contiguous()

    def over_time(inputs: ScanInputs) -> ScanInputs:
        tensors = inputs.tensors()
        return inputs.with_tensors(**{name: grown(each) for name, each in tensors.items() if each.dim() > 2})

    drawn = tuple(map(over_time, make_inputs(short, seed)))
    return tuple(map(in_rows, drawn)) if problem.layout == "dim_last" else drawn


def in_rows(inputs: ScanInputs) -> ScanInputs:
    """Return `inputs` with B and C as slices of one projection's output, as in a model."""
    rows, (dim, state) = inputs.B.mT, inputs.A.shape
    before = rows.new_empty((*rows.shape[:-1], dim // 32))  # those of delta, as in Mamba
    B, C = torch.cat((before, rows, inputs.C.mT), -1)[..., before.shape[-1] :].mT.split(state, -2)
    return inputs._replace(B=B, C=C)


def calls_of(
    problem: ScanProblem, run: Callable[..., ScanOutput], drawn: Sequence[tuple[ScanInputs, ...]]
) -> list[Call]:
    """Return a call of the scan for each set of inputs; of the backward pass alone where the problem has gradients."""
    if not problem.gradients:
        return [functools.partial(run, *inputs) for inputs in drawn]
    calls = []
    for inputs in drawn:
        leaves = tuple(
            each.with_tensors(**{name: tensor.detach().requires_grad_() for name, tensor in each.tensors().items()})
            for each in inputs
        )
        calls.append(backward_call(run(*leaves)[:1], [tensor for each in leaves for tensor in each.tensors().values()]))
    return calls


def backward_call(
    outs: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor]
) -> Callable[[], tuple[torch.Tensor, ...]]:
    """Return a call that computes the gradients of the leaves."""
    weights = [torch.randn_like(out) for out in outs]
    return lambda: torch.autograd.grad(outs, leaves, weights, retain_graph=True)
