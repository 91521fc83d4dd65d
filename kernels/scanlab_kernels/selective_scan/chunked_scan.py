"""Scan chunk by chunk: time is the first axis, channels are the last one, and chunks pass on their last state.

No tensor of (batch, dim, length, state) exists. For gradients the operands and the state before each chunk are kept,
and the backward pass computes each chunk again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
from scanlab_kernels.autograd import once
from scanlab_kernels.selective_scan import discretize, recurrence
from scanlab_kernels.selective_scan.recurrence import Solver

Kernel = Callable[..., Sequence[Tensor]]


class Step(NamedTuple):
    """Computation of one chunk, on contiguous operands.

    Attributes:
        forward: (u, delta, A, B, C, h) -> (y, last h).
        backward: (u, delta, A, B, C, h, grad_y, grad_h) -> the gradients of the first six.

    Shape:
        u, delta, y: (chunk, batch, groups, channels), for example (32, 64, 1, 384).
        A: (groups, state, channels), for example (1, 16, 384).
        B, C: (chunk, batch, groups, state, 1), or constant (1, 1, groups, state, channels).
        h: (batch, groups, state, channels).
    """

    forward: Kernel
    backward: Kernel


def scan(inputs: ScanInputs, problem: ScanProblem, chunk: int, step: Step, whole: bool = False) -> ScanOutput:
    """Return the forward scan of one direction in chunks of `chunk` time steps.

    Where `chunk` does not divide the length the last chunk is shorter; with `whole` it is padded by steps with
    delta = 0, which leave the state unchanged.
    """
    operands = discretize.operands(inputs, problem)
    missing = -problem.length % chunk if whole else 0

    def time_first(values: Tensor) -> Tensor:
        first = F.pad(values, (0, missing)).movedim(-1, 0)
        # Channels become the last axis, because there are many of them and few states.
        ordered: Tensor = first.mT if first.dim() == 5 else first
        return ordered.contiguous()

    def projection(given: Tensor, values: Tensor) -> Tensor:
        if given.dim() == 2:  # not expanded over time: its gradient would be as large as all states
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
    return discretize.epilogue(y[: problem.length].movedim(0, -1), h.mT, inputs)


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
    """Return (u, delta, A, B, C), or their gradients, for the chunk from `start` on; constant ones are not sliced."""
    u, delta, A, B, C = tensors
    now = slice(start, start + chunk)
    return [u[now], delta[now], A, *(each[now] if len(each) == len(u) else each for each in (B, C))]


def eager(solve: Solver) -> Step:
    """Return the step in torch operations, its recurrence solved by `solve`."""
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
        if not buffers:  # every chunk uses the same memory, which stays in the cache
            buffers.extend(h.new_empty((len(u), *h.shape)) for _ in range(2))
        return compute(*part, *(buffer[: len(u)] for buffer in buffers))

    def backward(*tensors: Tensor) -> tuple[Tensor, ...]:
        part = [tensor.detach().requires_grad_() for tensor in tensors[:6]]
        with torch.enable_grad():
            results = compute(*part)
        return torch.autograd.grad(results, part, tensors[6:])

    return Step(forward, backward)
