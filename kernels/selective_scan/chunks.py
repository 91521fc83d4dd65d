"""The scan chunk by chunk: time first, channels adjacent, the state carried from one chunk to the next.

Nothing of the size (batch, dim, length, state) ever exists. Where gradients are wanted, each chunk keeps its
slice of the operands and the state before it, and is computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from scanlab.kernels import pointwise, recurrence
from scanlab.kernels.recurrence import Solver
from scanlab.problem import ScanInputs, ScanOutput, ScanProblem

# (u, delta, A, B, C, h) of one chunk -> (y, last h).  All are contiguous; `chunk` comes first in what varies:
#   u, delta, y  (chunk, batch, groups, channels)         A  (groups, state, channels)
#   B, C         (chunk, batch, groups, state, 1), or constant (1, 1, groups, state, channels)
#   h            (batch, groups, state, channels)
Step = Callable[..., tuple[Tensor, Tensor]]


def scan(inputs: ScanInputs, problem: ScanProblem, chunk: int, step: Step, whole: bool = False) -> ScanOutput:
    """The forward scan of one direction, `chunk` time steps at once.

    The last chunk is shorter where `chunk` does not divide the length; where `whole` is set it is filled up
    with steps of size zero, which leave the state as it is.
    """
    operands = pointwise.operands(inputs, problem)
    missing = -problem.length % chunk if whole else 0

    def varying(values: Tensor) -> Iterable[Tensor]:
        first = F.pad(values, (0, missing)).movedim(-1, 0)
        # The channels become the last axis: they are many and their operands adjacent, the states are few.
        return torch.split((first.mT if first.dim() == 5 else first).contiguous(), chunk)

    def projection(given: Tensor, values: Tensor) -> Iterable[Tensor]:
        if given.dim() == 2:  # not expanded over time: its gradient would be of the size this scan avoids
            return repeat(given.unflatten(0, operands.A.shape[:2]).mT.contiguous()[None, None])
        return varying(values)

    A, h = operands.A.mT.contiguous(), operands.h.mT.contiguous()
    B, C = projection(inputs.B, operands.B), projection(inputs.C, operands.C)
    y = []
    for part in zip(varying(operands.u), varying(operands.delta), repeat(A), B, C, strict=False):  # constants never end
        outputs, h = step(*part, h)
        y.append(outputs)
    return pointwise.finish(torch.cat(y)[: problem.length].movedim(0, -1), h.mT, inputs)


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

    def step(*part: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in part):
            result: tuple[Tensor, Tensor] = checkpoint(compute, *part, use_reentrant=False, preserve_rng_state=False)
            return result
        u, h = part[0], part[-1]
        if not buffers:  # the same memory in every chunk, and so it stays in the cache
            buffers.extend(h.new_empty((len(u), *h.shape)) for _ in range(2))
        return compute(*part, *(buffer[: len(u)] for buffer in buffers))

    return step
