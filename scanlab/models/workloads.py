"""Models that `scanlab tune --model` knows by name, each with an input; a model of the user's own is a function.

Such a function takes a batch size and a size, and returns the model in float32 and in evaluation mode, and one input
tensor. It must return the same weights each time: several processes call it, and their outputs are compared.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from scanlab.errors import InputError, ScanlabError, did_you_mean
from scanlab.models import capture, digits, images, vision_mamba

Workload = Callable[[int, int], tuple[nn.Module, Tensor]]

# By name, because integrations are above models.
DROP_IN = "scanlab.integrations.mamba_ssm"
BUILT_IN = {
    "digits": f"{__name__}:digits_model",
    "vim-tiny": f"{__name__}:vim_tiny",
    "vim-small": f"{__name__}:vim_small",
    "vim-base": f"{__name__}:vim_base",
    "mamba-130m": "scanlab.integrations.mamba_ssm.workload:mamba_130m",
}

# Where code starts that is not the user's: Python's library, torch among installed packages, and scanlab.
LIBRARIES = ("<frozen", *map(os.path.dirname, (os.__file__, torch.__path__[0], os.path.dirname(__file__))))


def digits_model(batch: int = 16, size: int = 8) -> tuple[nn.Module, Tensor]:
    """Return the trained digits model and digits that were held out from its training."""
    if size != 8:
        raise InputError(f"size={size}: the digits have 8 pixels a side.")
    return digits.digits_model(), _repeated(digits.digits_test_set().images, batch)


def _vim(build: Callable[..., vision_mamba.VisionMamba], batch: int, size: int) -> tuple[nn.Module, Tensor]:
    photographs = torch.stack([images.prepare(images.sample_photograph(name), size) for name in images.SAMPLES])
    return capture.trained_like_(build(img_size=size)).eval(), _repeated(photographs, batch)


def vim_tiny(batch: int = 1, size: int = 224) -> tuple[nn.Module, Tensor]:
    """Return Vim-tiny with synthetic weights, and photographs of `size` pixels a side."""
    return _vim(vision_mamba.vim_tiny, batch, size)


def vim_small(batch: int = 1, size: int = 224) -> tuple[nn.Module, Tensor]:
    """Return Vim-small with synthetic weights, and photographs of `size` pixels a side."""
    return _vim(vision_mamba.vim_small, batch, size)


def vim_base(batch: int = 1, size: int = 224) -> tuple[nn.Module, Tensor]:
    """Return Vim-base with synthetic weights, and photographs of `size` pixels a side."""
    return _vim(vision_mamba.vim_base, batch, size)


def _repeated(inputs: Tensor, batch: int) -> Tensor:
    return inputs[torch.arange(batch) % len(inputs)].clone()


@functools.cache
def find_workload(name: str) -> Workload:
    """Return the workload that `name` names: one of BUILT_IN, "module:function" or "file.py:function".

    A module is found in the current folder too. scanlab serves its imports of mamba_ssm and causal_conv1d.

    Raises:
        InputError: There is none.
    """
    target, separator, function = BUILT_IN.get(name, name).rpartition(":")
    if not separator:
        known = ", ".join(BUILT_IN)
        raise InputError(
            f"no model is called {name!r}: there are {known}; one of yours is MODULE:FUNCTION."
            f"{did_you_mean(name, BUILT_IN)}"
        )
    if name not in BUILT_IN:
        importlib.import_module(DROP_IN).install()
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
    with told_in_a_sentence(name):
        try:
            module = _from_file(Path(target)) if target.endswith(".py") else importlib.import_module(target)
        except (ImportError, OSError, SyntaxError) as error:
            raise InputError(
                f"{name}: {target} cannot be imported ({error}). Name a module of the current folder or an installed"
                " one, or a file: path/to/file.py:FUNCTION."
            ) from error
    found = getattr(module, function, None)
    if not callable(found):
        raise InputError(f"{name}: {target} has no function {function!r}.")
    workload: Workload = found
    return workload


@contextmanager
def told_in_a_sentence(name: str) -> Iterator[None]:
    """Turn an error that code of the workload `name` raises into one sentence, which says where it was raised.

    Raises:
        InputError: The code raised an error that is not one of scanlab's.
    """
    try:
        yield
    except ScanlabError:
        raise
    except Exception as error:  # code of the user may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        own = [each for each in frames if not each.filename.startswith(LIBRARIES)] or frames
        where = f"{own[-1].filename}, line {own[-1].lineno}"
        raise InputError(f"{name} raised {type(error).__name__}: {error} ({where}).") from error


def default_sizes(name: str) -> tuple[int, int]:
    """Return the batch size and the size that the function behind `name` takes by default; 1 where it has none."""
    try:
        parameters = list(inspect.signature(find_workload(name)).parameters.values())
    except ValueError:  # of a function in C
        parameters = []
    defaults = [1 if each.default is inspect.Parameter.empty else each.default for each in parameters]
    match defaults:
        case (int() as batch, int() as size):
            return batch, size
    raise InputError(f"{name}: the function must take two arguments, a batch size and a size.")


def _from_file(path: Path) -> object:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that classes of the file can be pickled
    spec.loader.exec_module(module)
    return module
