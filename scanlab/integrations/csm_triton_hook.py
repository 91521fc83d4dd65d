"""Import the Triton kernels of VMamba's relatives, `csm_triton.py`, where Triton is missing, and do without them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NoReturn

from scanlab.errors import UnavailableError
from scanlab_kernels.after_import import AfterImport


def _wrap(module: ModuleType) -> None:
    from scanlab.integrations.vmamba import csm_triton  # installing takes no seconds, as an import of torch would

    csm_triton.wrap(module)


class _Kernel:
    """Stand-in of a Triton kernel, and of every other name of Triton: it can be defined, and not be launched."""

    def __call__(self, *args: Any, **kwargs: Any) -> _Kernel:
        return self

    def __getattr__(self, name: str) -> _Kernel:
        return self

    def __getitem__(self, grid: object) -> NoReturn:
        raise UnavailableError("this kernel is written in Triton, which is not installed and needs a GPU.")


@contextmanager
def _triton() -> Iterator[None]:
    """Let the source define kernels within the block where Triton is not installed."""
    stand_ins: dict[str, Any] = {}
    try:
        importlib.import_module("triton.language")
    except ImportError:
        stand_ins = {name: _Kernel() for name in ("triton", "triton.language")}
    before = {name: sys.modules[name] for name in stand_ins if name in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]
        sys.modules.update(before)


finder = AfterImport(r"(?:.*\.)?csm_triton\w*", _wrap, _triton)
