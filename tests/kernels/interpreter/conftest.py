"""Tests of the GPU kernels in Triton's interpreter; collected only in a process that has it switched on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from scanlab.kernels import triton_version

collect_ignore_glob = [] if triton_version.interpreted() else ["test_*.py"]


@pytest.fixture(autouse=True, scope="session")
def patched_once() -> Iterator[None]:
    """The interpreter patches the language for every function that a kernel calls, again and again: here, once."""
    from triton.language import core
    from triton.runtime import interpreter

    patch = interpreter._patch_lang

    def patch_once(fn: Callable[..., Any]) -> Any:
        modules = [each for each in fn.__globals__.values() if isinstance(each, ModuleType)]
        return patch(fn) if any(core.is_builtin(getattr(each, "load", None)) for each in modules) else None

    with pytest.MonkeyPatch.context() as context:
        context.setattr(interpreter, "_patch_lang", patch_once)
        yield
