"""Compilation of Python functions by torch into C++, with a cache that other users cannot write to.

torch's compiler is imported where it is called: that takes seconds, in every process that looks the backends up.
"""

from __future__ import annotations

import os
import re
import sysconfig
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scanlab.contract.compiler import CURE, find_compiler
from scanlab.contract.cpu import FOLLOW_TORCH, torch_threads
from scanlab_kernels.build import as_program, private_folder

TORCH_CACHE = "TORCHINDUCTOR_CACHE_DIR"
# torch keeps these below the folder for temporary files, whatever its cache is, where other users could plant them.
PRECOMPILED_HEADERS = "cpp_cache_precompile_headers"
PRECOMPILED_HEADERS_OF_PACKAGES = "aot_inductor.precompile_headers"
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
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    with _cache_lock:
        before = os.environ.get(TORCH_CACHE)
        # torch writes its own default there at the first use of its compiler.
        is_named = before not in (None, "", default_cache_dir())
        if not is_named:
            os.environ[TORCH_CACHE] = str(private_folder("torch"))
        try:
            yield
        finally:
            if before is not None:
                os.environ[TORCH_CACHE] = before
            else:
                os.environ.pop(TORCH_CACHE, None)


def compile_function(
    function: Callable[..., tuple[Tensor, ...]], examples: tuple[Tensor, ...], threads: int
) -> Compiled:
    """Return `function` compiled by torch into C++ for tensors like `examples`; `threads` 0 follows torch."""
    from torch.fx.experimental.proxy_tensor import make_fx

    compiler = find_compiler()
    # Without a number the code asks OpenMP for its threads at each call, as torch's own ops do.
    follows = threads == FOLLOW_TORCH
    options: dict[str, Any] = {"cpp.dynamic_threads": follows, "compile_threads": 1, PRECOMPILED_HEADERS: False}
    if not follows:
        options["cpp.threads"] = threads
    if compiler is not None:
        options["cpp.cxx"] = (None, as_program(compiler))
    with torch.inference_mode(False), torch.no_grad(), torch_threads(threads), private_cache():
        graph = make_fx(function)(*examples)
        try:
            return _compiled(graph, examples, options)
        except RuntimeError as error:
            if not _remove_damaged(str(error)):
                raise
            return _compiled(graph, examples, options)


def _compiled(graph: torch.fx.GraphModule, examples: tuple[Tensor, ...], options: dict[str, Any]) -> Compiled:
    from torch._inductor import compile as compile_graph

    kernel: Compiled = compile_graph(graph, list(examples), options=options)
    kernel(*examples)  # the first call finishes the build
    return kernel


def _remove_damaged(error: str) -> bool:
    """Remove the library that the system's loader refuses, as after a power loss; return whether there was one."""
    found = re.search(r"(/.+\.so): (?:file too short|invalid ELF header|.*beyond end of file)", error)
    if found is None or not Path(found.group(1)).is_relative_to(os.environ[TORCH_CACHE]):
        return False
    Path(found.group(1)).unlink(missing_ok=True)
    return True
