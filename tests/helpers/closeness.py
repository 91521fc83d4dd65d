"""Closeness of the drop-in's values to the official ones."""

from __future__ import annotations

from torch import Tensor

from scanlab.contract.verify import relative_error

TOLERANCE = 2e-5


def close(actual: Tensor, expected: Tensor, name: str = "") -> None:
    assert relative_error(actual.detach(), expected.detach()) <= TOLERANCE, name
