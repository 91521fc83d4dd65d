"""Arguments of the scan's torch ops, native and Triton: their order, and those kept for the gradients.

An op takes the tensors of the first direction, those of the second one (None if there is one direction), and then
its settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from scanlab.contract.problem import ScanInputs

PER_DIRECTION = len(ScanInputs._fields)
TENSORS = 2 * PER_DIRECTION


def directions(arguments: Sequence[Any]) -> tuple[ScanInputs, ...]:
    """Return the inputs of each direction among the arguments of an op."""
    both = ScanInputs(*arguments[:PER_DIRECTION]), ScanInputs(*arguments[PER_DIRECTION:TENSORS])
    return both if both[1].u is not None else both[:1]


def keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Keep the tensors, the settings and the checkpoints of a scan for its gradients."""
    ctx.set_materialize_grads(False)  # outputs that nothing used would get zeros as large as they are
    ctx.save_for_backward(output[2], *inputs[:TENSORS])
    ctx.settings = inputs[TENSORS:]
