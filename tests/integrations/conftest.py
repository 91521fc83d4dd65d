"""Fixtures of the integrations' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scanlab.runtime import dispatch


@pytest.fixture
def two_phase_scan(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scans without a compiler: they are tested elsewhere, what surrounds them here."""
    monkeypatch.setenv("SCANLAB_BACKEND", "two_phase:threads=1")
    dispatch.clear()
    yield
    dispatch.clear()
