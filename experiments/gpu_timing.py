"""How calls are timed on a GPU: by events, on inputs that take turns, each behind a copy that hides the host.

While the GPU copies the host queues the call, so that its events enclose what the GPU does and not how fast Python
launches it; that is timed apart. Calls that take the host longer than the copy, such as a loop in PyTorch, take what
the host takes. The copy also leaves nothing of the inputs in the caches.
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

ROTATION = 3
FEWEST, MOST, LIMIT_S = 3, 30, 0.7
COPIED_BYTES = 2**31
DRAWN_LENGTH = 64
Call = Callable[[], object]


class Times(NamedTuple):
    """Seconds of each call, on the GPU and of the host that queued it."""

    gpu_s: NDArray[np.float64]
    host_s: NDArray[np.float64]

    def columns(self) -> dict[str, float]:
        """Quartiles on the GPU, and the median of the host, by name."""
        return common.quartiles_s(self.gpu_s) | {"host_s": float(np.median(self.host_s))}


@functools.cache
def copy_call() -> tuple[Call, int]:
    """A call that copies, and how many bytes it reads and writes."""
    one = torch.empty(COPIED_BYTES // 2, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(one)
    return lambda: other.copy_(one), COPIED_BYTES


def times_s(calls: Sequence[Call], most: int = MOST) -> Times:
    """The times of calls that take turns, at most so many or what fits the limit; the first turn of all warms up."""
    ahead, _ = copy_call()
    gpu_s, host_s = [], []
    start = time.perf_counter()
    for turn in range(len(calls) + most):
        if turn >= len(calls) + FEWEST and time.perf_counter() - start > LIMIT_S:
            break
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        ahead()
        begin.record()
        queued = time.perf_counter()
        calls[turn % len(calls)]()
        host_s.append(time.perf_counter() - queued)
        end.record()
        end.synchronize()
        gpu_s.append(begin.elapsed_time(end) / 1e3)
    return Times(np.array(gpu_s[len(calls) :]), np.array(host_s[len(calls) :]))


def inputs_of(problem: ScanProblem, seed: int) -> tuple[ScanInputs, ...]:
    """Inputs that repeat those of one short sequence, in memory of their own: whole ones take seconds to draw."""
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
    """`inputs` with B and C as slices of one projection's output, as they are in a model."""
    rows, (dim, state) = inputs.B.mT, inputs.A.shape
    before = rows.new_empty((*rows.shape[:-1], dim // 32))  # those of delta, as in Mamba
    B, C = torch.cat((before, rows, inputs.C.mT), -1)[..., before.shape[-1] :].mT.split(state, -2)
    return inputs._replace(B=B, C=C)


def calls_of(
    problem: ScanProblem, run: Callable[..., ScanOutput], drawn: Sequence[tuple[ScanInputs, ...]]
) -> list[Call]:
    """A call of a scan for each set of inputs; with gradients, of the way back alone."""
    if not problem.gradients:
        return [functools.partial(run, *inputs) for inputs in drawn]
    calls = []
    for inputs in drawn:
        leaves = tuple(
            each.with_tensors(**{name: tensor.detach().requires_grad_() for name, tensor in each.tensors().items()})
            for each in inputs
        )
        calls.append(way_back(run(*leaves)[:1], [tensor for each in leaves for tensor in each.tensors().values()]))
    return calls


def way_back(outs: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor]) -> Callable[[], tuple[torch.Tensor, ...]]:
    """A call that computes the gradients of the leaves anew each time."""
    weights = [torch.randn_like(out) for out in outs]
    return lambda: torch.autograd.grad(outs, leaves, weights, retain_graph=True)
