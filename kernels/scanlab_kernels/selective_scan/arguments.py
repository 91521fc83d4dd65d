"""What the torch ops of the scan share, whatever computes them: the order of their arguments.

An op takes the tensors of one direction and then those of the other, absent or not, and then its settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scanlab.contract.problem import ScanInputs

PER_DIRECTION = len(ScanInputs._fields)
TENSORS = 2 * PER_DIRECTION


def directions(arguments: Sequence[Any]) -> tuple[ScanInputs, ...]:
    """The inputs of each direction among the arguments of an op."""
    both = ScanInputs(*arguments[:PER_DIRECTION]), ScanInputs(*arguments[PER_DIRECTION:TENSORS])
    return both if both[1].u is not None else both[:1]
