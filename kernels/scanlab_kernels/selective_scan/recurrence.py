"""Linear recurrence h[t] = decay[t] h[t-1] + drive[t], in place, with its gradient.

The gradient of a linear recurrence is a linear recurrence from the last step to the first,

    grad_drive[t] = grad_h[t] + conj(decay[t+1]) grad_drive[t+1],

so one solver serves both passes. A solver takes (decay, states), whose first axis is time; `states` contains the drives
and is overwritten by the states. It neither reads decay[0] nor writes to decay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from scanlab_kernels.autograd import once

Solver = Callable[[Tensor, Tensor], None]


def sequential(decay: Tensor, states: Tensor) -> None:
    """Solve step by step: length steps over all channels and states."""
    steps = states.unbind()
    previous = steps[0]
    for rate, step in zip(decay.unbind()[1:], steps[1:], strict=True):
        previous = step.addcmul_(rate, previous)


def logarithmic(decay: Tensor, states: Tensor) -> None:
    """Solve by odd-even reduction: 2 log2(length) steps, each over a part of the length.

    Two neighbours combine by (a1, b1) o (a2, b2) = (a1 a2, a2 b1 + b2). The odd positions then form a recurrence of
    half the length, and each even position follows from the odd one before it. The work is linear in the length.

    Source: Ladner and Fischer 1980, Parallel prefix computation; Blelloch 1990, Prefix sums and their applications.
    """
    if len(states) == 1:
        return
    even, odd = states[0::2], states[1::2]
    pairs = len(odd)
    odd.addcmul_(decay[1::2], even[:pairs])
    logarithmic(decay[1::2] * decay[0::2][:pairs], odd)
    even[1:].addcmul_(decay[2::2], odd[: len(even) - 1])


class _Recurrence(torch.autograd.Function):
    # The tensor written in place is the first input: autograd assumes this where it is a view.
    @staticmethod
    def forward(ctx: Any, drive: Tensor, decay: Tensor, h: Tensor, solve: Solver) -> Tensor:
        drive[0].addcmul_(decay[0], h)
        solve(decay, drive)
        ctx.mark_dirty(drive)
        ctx.save_for_backward(decay, drive, h)
        ctx.solve = solve
        return drive

    @staticmethod
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        def gradients(grad_states: Tensor, decay: Tensor, states: Tensor, h: Tensor) -> tuple[Tensor, ...]:
            backwards = grad_states.flip(0)
            ctx.solve(decay.conj().flip(0).roll(1, 0), backwards)
            grad_drive = backwards.flip(0)
            grad_decay = grad_drive.clone()
            grad_decay[0] *= h.conj()
            grad_decay[1:] *= states[:-1].conj()
            return grad_drive, grad_decay, grad_drive[0] * decay[0].conj()

        return (*once(gradients, grad_states, *ctx.saved_tensors), None)


def solved(decay: Tensor, drive: Tensor, h: Tensor, solve: Solver) -> Tensor:
    """Return all states of the recurrence, differentiably; they overwrite `drive`.

    Args:
        decay: (length, ...), for example (32, 64, 1, 16, 384).
        drive: Like decay.
        h: (...), the state before the first step.
        solve: Solves the recurrence.
    """
    return cast(Tensor, _Recurrence.apply(drive, decay, h, solve))  # type: ignore[no-untyped-call]
