"""The libraries that a wheel brings serve where they belong, and say why where they do not."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import pytest

from scanlab_kernels import shipped
from scanlab_kernels.integrity import digest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="wheels with kernels are for Linux")


@pytest.fixture
def ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a library into the folder of the shipped ones, built from the sources "abc", for `machine`."""
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    monkeypatch.setattr(shipped, "MANIFEST", tmp_path / "manifest.json")
    shipped.find.cache_clear()

    def put(machine: str = platform.machine()) -> Path:
        library = tmp_path / "tiny.so"
        library.write_bytes(b"code")
        entry = {"file": library.name, "sha256": digest(library), "sources": "abc"}
        shipped.MANIFEST.write_text(json.dumps({"machine": machine, "libraries": {"tiny": entry}}))
        return library

    yield put
    shipped.find.cache_clear()


def test_a_library_of_these_sources_for_this_machine_serves(ship):
    library = ship()
    assert shipped.find("tiny", "abc") == (library, None)


def test_a_source_tree_ships_nothing_and_needs_no_reason(ship):
    assert shipped.find("tiny", "abc") == (None, None)
    ship()
    assert shipped.find("another", "abc") == (None, None)


def test_other_sources_are_compiled(ship):
    ship()
    library, reason = shipped.find("tiny", "abd")
    assert library is None
    assert "the sources beside it were changed" in reason


def test_a_library_for_another_machine_is_left_alone(ship):
    ship("riscv64")
    library, reason = shipped.find("tiny", "abc")
    assert library is None
    assert "it is for Linux on riscv64" in reason


def test_a_damaged_library_is_left_alone(ship):
    ship().write_bytes(b"coda")
    library, reason = shipped.find("tiny", "abc")
    assert library is None
    assert "damaged" in reason
    assert "reinstall scanlab" in reason
