"""The scan chunk by chunk: time first, channels adjacent, the state carried from one chunk to the next.

Nothing of the size (batch, dim, length, state) ever exists. Where gradients are wanted, each chunk keeps its
slice of the operands and the state before it, and is computed again in the backward pass.
"""

from __future__ import annotations

from itertools import repeat

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from scanlab.kernels import pointwise, recurrence
from scanlab.kernels.recurrence import Solver
from scanlab.problem import ScanInputs, ScanOutput, ScanProblem


def scan(inputs: ScanInputs, problem: ScanProblem, chunk: int, solve: Solver) -> ScanOutput:
    """The forward scan of one direction, `chunk` time steps at once, each chunk's recurrence by `solve`."""

    def step(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, *buffers: Tensor
    ) -> tuple[Tensor, Tensor]:
        for_decay, for_states = (buffer[: len(u)] for buffer in buffers) if buffers else (None, None)
        decay = torch.mul(delta[..., None, :], A, out=for_decay).exp_()
        drive = torch.mul((delta * u)[..., None, :], B, out=for_states)
        states = recurrence.solved(decay, drive, h, solve)
        y = torch.mul(states, C, out=for_decay).sum(-2)
        return y, states[-1].clone()

    operands = pointwise.operands(inputs, problem)
    # The channels become the last axis: they are many and their operands adjacent, the states are few.
    u, delta = (values.movedim(-1, 0).contiguous().split(chunk) for values in (operands.u, operands.delta))
    B, C = (values.movedim(-1, 0).mT.split(chunk) for values in (operands.B, operands.C))
    A, h = operands.A.mT.contiguous(), operands.h.mT.contiguous()
    parts = zip(u, delta, repeat(A), B, C, strict=False)  # only A has no end
    y = []
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs.tensors().values()):
        for part in parts:
            outputs, h = checkpoint(step, *part, h, use_reentrant=False, preserve_rng_state=False)
            y.append(outputs)
    else:
        # The two buffers of a chunk are the same memory in every chunk, and so stay in the cache.
        buffers = [h.new_empty((len(u[0]), *h.shape)) for _ in range(2)]
        for part in parts:
            outputs, h = step(*part, h, *buffers)
            y.append(outputs)
    return pointwise.finish(torch.cat(y).movedim(0, -1), h.mT, inputs)
