"""Which Triton runs the kernels, or why none does; the one place that knows what differs between its versions."""

from __future__ import annotations

import functools
import importlib.metadata
import os
from typing import Any

OLDEST = (3, 5)
COUNTS_WITH_NEW_NUMPY = (3, 7)
LAYS_THREADS_ALONG_THE_LAST_AXIS = (3, 7)


def interpreted() -> bool:
    """Whether kernels are interpreted on the CPU instead of compiled: the environment says so before Triton loads."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def installed() -> tuple[int, ...] | None:
    """The version of the package triton, or None where it is not there."""
    try:
        text = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None
    return tuple(int(part) for part in text.split("+")[0].split(".")[:3] if part.isdigit())


def unsupported() -> str | None:
    """Why the installed Triton cannot be used, with the cure, or None."""
    version = installed()
    oldest = ".".join(map(str, OLDEST))
    if version is None:
        return f"the package triton is not installed; install scanlab[gpu], which needs Linux or triton>={oldest}."
    if version < OLDEST:
        return f"triton {'.'.join(map(str, version))} is older than {oldest}; upgrade it."
    return None


def lanes_last() -> bool:
    """Whether Triton lays the threads of a warp along the last axis of a tile instead of the first."""
    version = installed()
    return version is not None and version >= LAYS_THREADS_ALONG_THE_LAST_AXIS


@functools.cache
def prepare_interpreter() -> None:
    """Let the interpreter of Triton before 3.7 count loops where numpy is 2.4 or newer.

    It turns an array of one element into a number by `int`, which numpy refuses since then.
    """
    version = installed()
    if version is None or version >= COUNTS_WITH_NEW_NUMPY:
        return
    from triton.runtime import interpreter  # only where it is used: a scan that is compiled has no need of it

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        if scope:
            scope[0].set_attr(tensor, "__index__", _as_number)
        else:  # before 3.6 what is patched stays so
            tensor.__index__ = _as_number

    interpreter._patch_lang_tensor = patched


def _as_number(tensor: Any) -> int:
    return int(tensor.handle.data.item())
