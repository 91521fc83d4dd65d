"""Modules that a drop-in replaces, and a context that restores them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from scanlab.integrations import mamba_ssm as drop_in

OFFICIAL = (
    *("mamba_ssm", "causal_conv1d", "selective_scan_cuda", "causal_conv1d_cuda"),
    *("selective_scan_cuda_core", "selective_scan_cuda_nrow", "selective_scan_cuda_oflex"),
    *("selective_scan_cuda_ndstate", "selective_scan", "selective_scan_vmamba", "selective_scan_vmamba_pt202"),
)


def loaded() -> set[str]:
    """The official modules that are imported."""
    return {name for name in sys.modules if name.partition(".")[0] in OFFICIAL}


@contextmanager
def untouched() -> Iterator[None]:
    """No official module imported before or after, and no drop-in left installed; skips where one is installed."""
    drop_in.uninstall()  # one that an earlier test left must not look like an installed package, and skip this test
    present = [name for name in OFFICIAL if importlib.util.find_spec(name) is not None]
    if present:
        pytest.skip(f"{', '.join(present)}: installed here, where these tests need packages of their own by that name")
    try:
        yield
    finally:
        drop_in.uninstall()
        for name in loaded():
            del sys.modules[name]
