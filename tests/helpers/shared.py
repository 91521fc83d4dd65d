"""Folders that take long to fill, shared by the processes of one run of the tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def filled_once(factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], object]) -> Path:
    """Return a folder that `fill` has filled, by whichever process of this run came first.

    Args:
        factory: The fixture `tmp_path_factory`.
        name: Name of the folder, another one for each use.
        fill: Called with the empty folder; what it raises is raised in each process that asks.
    """
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    complete = folder.with_suffix(".complete")
    with FileLock(folder.with_suffix(".lock")):
        if not complete.exists():
            folder.mkdir(exist_ok=True)
            fill(folder)
            complete.touch()
    return folder
