"""What the torch ops of the scan share, whatever computes them: the order of their arguments, and their gradients.

An op takes the tensors of one direction and then those of the other, absent or not, and then its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scanlab.problem import ScanInputs

PER_DIRECTION = len(ScanInputs._fields)
TENSORS = 2 * PER_DIRECTION


def directions(arguments: Sequence[Any]) -> tuple[ScanInputs, ...]:
    """The inputs of each direction among the arguments of an op."""
    both = ScanInputs(*arguments[:PER_DIRECTION]), ScanInputs(*arguments[PER_DIRECTION:TENSORS])
    return both if both[1].u is not None else both[:1]


def keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Keep what the gradients need: the inputs and the checkpoints."""
    ctx.set_materialize_grads(False)  # outputs that nothing used would get zeros as large as they are
    ctx.save_for_backward(output[2], *inputs[:TENSORS])
    ctx.settings = inputs[TENSORS:]


def gradients_by(backward: Callable[..., list[Tensor]]) -> Callable[..., tuple[Any, ...]]:
    """The gradients of an op that kept its checkpoints, one for each of its arguments.

    backward  (grad_out, grad_last, checkpoints, *arguments) -> the gradients of the inputs that are there, in order
    """

    def gradients(
        ctx: Any, grad_out: Tensor | None, grad_last: Tensor | None, grad_checkpoints: None
    ) -> tuple[Any, ...]:
        checkpoints, *tensors = ctx.saved_tensors
        if grad_out is None:
            grad_out = torch.zeros_like(tensors[0])
        found = iter(backward(grad_out, grad_last, checkpoints, *tensors, *ctx.settings))
        return (*(None if tensor is None else next(found) for tensor in tensors), *(None for _ in ctx.settings))

    return gradients
