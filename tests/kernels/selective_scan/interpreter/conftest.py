"""Tests of the GPU kernels in Triton's interpreter, collected only in a process with TRITON_INTERPRET=1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from scanlab_kernels.gpu import version

collect_ignore_glob = [] if version.interpreted() else ["test_*.py"]


@pytest.fixture(autouse=True, scope="session")
def patched_once() -> Iterator[None]:
    """Patch the language once for each kernel instead of at every call of one of its functions."""
    from triton.runtime.interpreter import InterpretedFunction

    patch_and_call = InterpretedFunction.__call__

    def call(function: InterpretedFunction, *args: Any, **named: Any) -> Any:
        ours = function.fn.__module__.startswith("scanlab_kernels.")
        return function.rewrite()(*args, **named) if ours else patch_and_call(function, *args, **named)

    with pytest.MonkeyPatch.context() as context:
        context.setattr(InterpretedFunction, "__call__", call)
        yield
