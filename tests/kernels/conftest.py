"""Fixtures of the mixer's tests: the native ops, on each instruction set of this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.instruction_sets import INSTRUCTION_SETS, instruction_set
from scanlab_kernels.cpu import extension


@pytest.fixture(scope="session")
def native() -> None:
    """The native ops, compiled if need be; skips where they cannot be."""
    reason = extension.unavailable()
    if reason is not None:
        pytest.skip(reason)
    extension.load()


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request: pytest.FixtureRequest, native: None) -> Iterator[str]:
    """Each instruction set of this machine, forced."""
    with instruction_set(request.param):
        yield request.param
