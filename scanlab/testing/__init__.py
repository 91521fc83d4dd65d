"""Tools for the authors of backends: `compare` times backends side by side, the contracts test one under pytest.

    from scanlab.testing import BackendContract
    from my_package import backend

    class TestMine(BackendContract):
        backend = backend

A backend of another op than the scan has `OpContract` instead of `BackendContract`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scanlab.testing.comparison import BackendTime, compare

if TYPE_CHECKING:
    from scanlab.testing.backend_contract import BackendContract, OpContract

__all__ = ["BackendContract", "BackendTime", "OpContract", "compare"]


def __getattr__(name: str) -> Any:
    # The contracts alone need pytest.
    if name not in __all__:
        raise AttributeError(f"module 'scanlab.testing' has no attribute {name!r}")
    from scanlab.testing import backend_contract

    return getattr(backend_contract, name)
