"""Imports from the checkouts of public repositories, some of whose requirements are not installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Tensor, ...]]  # a model and its inputs


def image(*shape: int) -> Tensor:
    """Return a random tensor, the same for each call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def stand_in(name: str, **attributes: Any) -> None:
    """Let `import name` give a module with these attributes, for packages that a model takes a trifle from."""
    module = ModuleType(name)
    vars(module).update(attributes, __path__=[])
    sys.modules.setdefault(name, module)


def package(name: str, folder: str) -> None:
    """Let `name` be a package of the files in a folder of the checkout, without running its __init__.py."""
    module = sys.modules[name] = ModuleType(name)
    module.__path__ = [str(found(folder))]


def found(path: str) -> Path:
    """Return where a path of the checkout is."""
    return next(Path(folder) / path for folder in sys.path if (Path(folder) / path).exists())


def from_file(name: str, path: str) -> ModuleType:
    """Import a file of the checkout without the packages that it is in."""
    spec = importlib.util.spec_from_file_location(name, found(path))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
