"""Which Triton runs the kernels, or why none does; the one place that knows what differs between its versions."""

from __future__ import annotations

import functools
import importlib.metadata
import os
from typing import Any

from scanlab.errors import UnavailableError

OLDEST = (3, 5)
TRIED = "3.5.1, 3.6.0, 3.7.1 and 3.9.0"
COUNTS_WITH_NEW_NUMPY = (3, 7)
NEW_NUMPY = (2, 4)
COMPILES_ABSENT_MEMBERS = (3, 6)
LAYS_THREADS_ALONG_THE_LAST_AXIS = (3, 7)


def interpreted() -> bool:
    """Whether kernels are interpreted on the CPU instead of compiled: the environment says so before Triton loads."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def installed(package: str = "triton") -> tuple[int, ...] | None:
    """The version of a package, or None where it is not there."""
    try:
        text = importlib.metadata.version(package)
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


def compiles_absent_members() -> bool:
    """Whether Triton compiles a kernel of a tuple that has None between its members."""
    version = installed()
    return version is not None and version >= COMPILES_ABSENT_MEMBERS


def inside(owner: object, name: str, cure: str) -> Any:
    """What Triton keeps to itself under this name; raises UnavailableError, with the cure, where it is gone."""
    try:
        return getattr(owner, name)
    except AttributeError:
        version = ".".join(map(str, installed() or ()))
        reason = f"triton {version} has no {name}, which {TRIED} have"
        raise UnavailableError(f"{reason}; install one of these, or {cure}.") from None


@functools.cache
def prepare_interpreter() -> None:
    """Let the interpreter of Triton before 3.7 count loops where numpy is 2.4 or newer.

    It turns an array of one element into a number by `int`, which numpy refuses since then.
    """
    version, numpy = installed(), installed("numpy")
    if version is None or version >= COUNTS_WITH_NEW_NUMPY or numpy is None or numpy < NEW_NUMPY:
        return
    from triton.runtime import interpreter  # only where it is used: a scan that is compiled has no need of it

    patch = inside(interpreter, "_patch_lang_tensor", "use numpy<2.4")

    def patched(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        if scope:
            scope[0].set_attr(tensor, "__index__", _as_number)
        else:  # before 3.6 what is patched stays so
            tensor.__index__ = _as_number

    interpreter._patch_lang_tensor = patched


def _as_number(tensor: Any) -> int:
    return int(tensor.handle.data.item())
