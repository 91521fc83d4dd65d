"""Drop-in and CUDA mapping of `scanlab run` in the Python processes that its script starts.

A child that is not forked (DataLoader workers with spawn or forkserver, torch.multiprocessing.spawn, torchrun) starts
a new interpreter. Python imports a module called sitecustomize at its start: within `in_children`, PYTHONPATH leads it
to the one beside this file, which calls `prepare`. Interpreters that ignore PYTHONPATH (`python -I`, `-E`) are not
reached.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from scanlab import settings

FOLDER = str(Path(__file__).parent)


@contextmanager
def in_children(*, cpu: bool) -> Iterator[None]:
    """Install the drop-in in every Python process that is started within the block.

    Args:
        cpu: Run code for a cuda device on the CPU there too.
    """
    path = os.environ.get("PYTHONPATH")
    with (
        _environment("PYTHONPATH", FOLDER if not path else os.pathsep.join((FOLDER, path))),
        _environment(settings.CUDA_ON_CPU.name, "1" if cpu else None),
    ):
        yield


@contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """Set an environment variable within the block; None removes it."""
    before = os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def prepare() -> None:
    """Install the drop-in in this process, which has just started. PyTorch is not imported for it."""
    from scanlab.integrations import mamba_ssm

    mamba_ssm.install()
    if settings.CUDA_ON_CPU.get() == "1":
        sys.meta_path.insert(0, TorchFinder())


class TorchFinder(MetaPathFinder):
    """Finder that maps cuda devices to the CPU as soon as PyTorch has been imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of torch with a loader that maps cuda afterwards, and None for all other modules."""
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            spec.loader = MappingLoader(spec.loader)
        return spec


class MappingLoader(Loader):
    """Loader that loads torch as another loader would and maps cuda devices to the CPU for the life of the process."""

    def __init__(self, theirs: Loader) -> None:
        self.theirs = theirs

    def __getattr__(self, name: str) -> Any:
        return getattr(self.theirs, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return the module that the other loader creates."""
        return self.theirs.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, then map cuda."""
        self.theirs.exec_module(module)
        from scanlab.integrations.cuda_on_cpu import on_cpu  # needs torch

        mapping = on_cpu(announce=False)
        mapping.__enter__()
        atexit.register(mapping.__exit__, None, None, None)
