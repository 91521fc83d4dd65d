"""Act on a module of another package when it is imported, without importing it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

Act = Callable[[ModuleType], None]
During = Callable[[], AbstractContextManager[None]]


class AfterImport(MetaPathFinder):
    """Finder that calls `act` with each module whose full name matches, once its source file has run.

    It works while it stands in sys.meta_path, before the finders of Python.

    Args:
        names: Regular expression.
        act: Called with the module.
        during: Context in which the source file runs.
    """

    def __init__(self, names: str, act: Act, during: During = nullcontext) -> None:
        self._names, self._act, self._during = re.compile(names), act, during

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module that matches, with a loader that acts on it; None for all other modules."""
        if not self._names.fullmatch(fullname):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Acting(spec.loader.name, spec.loader.path, self._act, self._during)
        return spec


class _Acting(SourceFileLoader):
    def __init__(self, fullname: str, path: str, act: Act, during: During) -> None:
        super().__init__(fullname, path)
        self._act, self._during = act, during

    def exec_module(self, module: ModuleType) -> None:
        with self._during():
            super().exec_module(module)
        self._act(module)
