"""The scan chunk by chunk: time first, channels adjacent, the state carried from one chunk to the next.

Nothing of the size (batch, dim, length, state) ever exists. Where gradients are wanted, the operands and the
state before each chunk are kept, and each chunk is computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
from scanlab_kernels.autograd import once
from scanlab_kernels.selective_scan import _discretize as pointwise
from scanlab_kernels.selective_scan import _recurrence as recurrence
from scanlab_kernels.selective_scan._recurrence import Solver

Kernel = Callable[..., Sequence[Tensor]]


class Step(NamedTuple):
    """What one chunk computes; every operand is contiguous, and `chunk` comes first in what varies over time.

    forward   (u, delta, A, B, C, h) -> (y, last h)
    backward  (u, delta, A, B, C, h, grad_y, grad_h) -> the gradients of the six

    u, delta, y  (chunk, batch, groups, channels)       A  (groups, state, channels)
    B, C         (chunk, batch, groups, state, 1), or constant (1, 1, groups, state, channels)
    h            (batch, groups, state, channels)
    """

    forward: Kernel
    backward: Kernel


def scan(inputs: ScanInputs, problem: ScanProblem, chunk: int, step: Step, whole: bool = False) -> ScanOutput:
    """The forward scan of one direction, `chunk` time steps at once.

    The last chunk is shorter where `chunk` does not divide the length; where `whole` is set it is filled up
    with steps of size zero, which leave the state as it is.
    """
    operands = pointwise.operands(inputs, problem)
    missing = -problem.length % chunk if whole else 0

    def time_first(values: Tensor) -> Tensor:
        first = F.pad(values, (0, missing)).movedim(-1, 0)
        # The channels become the last axis: they are many and their operands adjacent, the states are few.
        ordered: Tensor = first.mT if first.dim() == 5 else first
        return ordered.contiguous()

    def projection(given: Tensor, values: Tensor) -> Tensor:
        if given.dim() == 2:  # not expanded over time: its gradient would be of the size this scan avoids
            constant: Tensor = given.unflatten(0, operands.A.shape[:2]).mT.contiguous()
            return constant[None, None]
        return time_first(values)

    y, h = _Chunks.apply(  # type: ignore[no-untyped-call]
        step,
        chunk,
        time_first(operands.u),
        time_first(operands.delta),
        operands.A.mT.contiguous(),
        projection(inputs.B, operands.B),
        projection(inputs.C, operands.C),
        operands.h.mT.contiguous(),
    )
    return pointwise.finish(y[: problem.length].movedim(0, -1), h.mT, inputs)


class _Chunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Step, chunk: int, *operands: Tensor) -> tuple[Tensor, Tensor]:
        *others, h = operands
        u, A = others[0], others[2]
        y, before = torch.empty(u.shape, dtype=A.dtype, device=u.device), []
        for start in range(0, len(u), chunk):
            before.append(h)
            y[start : start + chunk], h = step.forward(*_during(others, start, chunk), h)
        ctx.step, ctx.chunk = step, chunk
        ctx.save_for_backward(*others, *before)
        return y, h

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        def gradients(grad_y: Tensor, grad_h: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
            operands, before = saved[:5], saved[5:]
            totals = [torch.zeros_like(operand) for operand in operands]
            grad_y, grad_h = grad_y.contiguous(), grad_h.contiguous()
            for index in reversed(range(len(before))):
                start = index * ctx.chunk
                given = (*_during(operands, start, ctx.chunk), before[index], grad_y[start : start + ctx.chunk], grad_h)
                *found, grad_h = ctx.step.backward(*given)
                for total, share in zip(_during(totals, start, ctx.chunk), found, strict=True):
                    total += share
            return *totals, grad_h

        return None, None, *once(gradients, grad_y, grad_h, *ctx.saved_tensors)


def _during(tensors: Sequence[Tensor], start: int, chunk: int) -> list[Tensor]:
    """(u, delta, A, B, C), or their gradients, from `start` on for a chunk; what does not vary is there as a whole."""
    u, delta, A, B, C = tensors
    now = slice(start, start + chunk)
    return [u[now], delta[now], A, *(each[now] if len(each) == len(u) else each for each in (B, C))]


def eager(solve: Solver) -> Step:
    """The step of one scan in torch operations, its recurrence by `solve`."""
    buffers: list[Tensor] = []

    def compute(
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        h: Tensor,
        for_decay: Tensor | None = None,
        for_states: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        decay = torch.mul(delta[..., None, :], A, out=for_decay).exp_()
        drive = torch.mul((delta * u)[..., None, :], B, out=for_states)
        states = recurrence.solved(decay, drive, h, solve)
        return torch.mul(states, C, out=for_decay).sum(-2), states[-1].clone()

    def forward(*part: Tensor) -> tuple[Tensor, Tensor]:
        u, h = part[0], part[-1]
        if not buffers:  # the same memory in every chunk, and so it stays in the cache
            buffers.extend(h.new_empty((len(u), *h.shape)) for _ in range(2))
        return compute(*part, *(buffer[: len(u)] for buffer in buffers))

    def backward(*tensors: Tensor) -> tuple[Tensor, ...]:
        part = [tensor.detach().requires_grad_() for tensor in tensors[:6]]
        with torch.enable_grad():
            results = compute(*part)
        return torch.autograd.grad(results, part, tensors[6:])

    return Step(forward, backward)
