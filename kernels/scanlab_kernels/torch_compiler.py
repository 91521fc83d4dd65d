"""Compilation of Python functions by torch into C++, with a cache that other users cannot write to."""

from __future__ import annotations

import os
import sysconfig
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from scanlab.contract.compiler import CURE, find_compiler
from scanlab.contract.cpu import FOLLOW_TORCH, torch_threads
from scanlab_kernels.build import as_program, private_folder

TORCH_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_cache_lock = threading.RLock()  # the environment is one for all threads

Compiled = Callable[..., Sequence[Tensor]]


def unavailable() -> str | None:
    """Return why no code can be compiled here, with the cure, or None."""
    if find_compiler() is None:
        return f"there is no C++ compiler; {CURE}."
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if not headers.exists():
        return f"{headers} is missing; install Python's headers (on Debian and Ubuntu `apt install python3-dev`)."
    return None


@contextmanager
def private_cache() -> Iterator[None]:
    """Let torch's compiler keep its libraries in scanlab's cache folder, unless TORCHINDUCTOR_CACHE_DIR names another.

    Its own default is a folder below the one for temporary files, which others may have made before.
    """
    with _cache_lock:
        named = os.environ.get(TORCH_CACHE)
        os.environ[TORCH_CACHE] = named or str(private_folder("torch"))
        try:
            yield
        finally:
            if not named:
                del os.environ[TORCH_CACHE]


def compile_function(
    function: Callable[..., tuple[Tensor, ...]], examples: tuple[Tensor, ...], threads: int
) -> Compiled:
    """Return `function` compiled by torch into C++ for tensors like `examples`; `threads` 0 follows torch."""
    compiler = find_compiler()
    # Without a number the code asks OpenMP for its threads at each call, as torch's own ops do.
    follows = threads == FOLLOW_TORCH
    options: dict[str, Any] = {"cpp.dynamic_threads": follows, "compile_threads": 1}
    if not follows:
        options["cpp.threads"] = threads
    if compiler is not None:
        options["cpp.cxx"] = (None, as_program(compiler))
    with torch.inference_mode(False), torch.no_grad(), torch_threads(threads), private_cache():
        graph = make_fx(function)(*examples)
        kernel: Compiled = torch._inductor.compile(graph, list(examples), options=options)
        kernel(*examples)  # the first call finishes the build
    return kernel
