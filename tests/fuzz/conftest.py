"""Fixtures of random calls: the native ops, compiled if need be."""

from __future__ import annotations

import pytest

from scanlab_kernels.cpu import extension


@pytest.fixture(scope="session")
def native() -> None:
    """The native ops; skips where they cannot be compiled."""
    reason = extension.unavailable()
    if reason is not None:
        pytest.skip(reason)
    extension.load()
