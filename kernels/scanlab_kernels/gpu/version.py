"""Version of Triton: whether it can run the kernels, and the differences between versions."""

from __future__ import annotations

import functools
import importlib.metadata
import os
from typing import Any

from scanlab.errors import UnavailableError

MIN_VERSION = (3, 5)
TESTED = "3.5.1, 3.6.0, 3.7.1 and 3.9.0"
COUNTS_WITH_NEW_NUMPY = (3, 7)
NEW_NUMPY = (2, 4)
COMPILES_ABSENT_MEMBERS = (3, 6)
LAYS_THREADS_ALONG_THE_LAST_AXIS = (3, 7)


def interpreted() -> bool:
    """Return whether kernels are interpreted on the CPU; Triton reads TRITON_INTERPRET when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def installed(package: str = "triton") -> tuple[int, ...] | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        text = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    return tuple(int(part) for part in text.split("+")[0].split(".")[:3] if part.isdigit())


def unsupported() -> str | None:
    """Return why the installed Triton cannot be used, with the cure, or None."""
    version = installed()
    oldest = ".".join(map(str, MIN_VERSION))
    if version is None:
        return (
            "the package triton is not installed; on Linux run `pip install 'scanlab[gpu]'`, elsewhere install"
            f" triton>={oldest}."
        )
    if version < MIN_VERSION:
        return f"triton {'.'.join(map(str, version))} is older than {oldest}; upgrade it."
    return None


def lanes_last() -> bool:
    """Return whether Triton lays the threads of a warp along the last axis of a tile instead of the first."""
    version = installed()
    return version is not None and version >= LAYS_THREADS_ALONG_THE_LAST_AXIS


def compiles_absent_members() -> bool:
    """Return whether Triton compiles kernels that take a tuple with None among its members."""
    version = installed()
    return version is not None and version >= COMPILES_ABSENT_MEMBERS


def inside(owner: object, name: str, cure: str) -> Any:
    """Return an undocumented attribute of Triton.

    Raises:
        UnavailableError: The installed version does not have it; the error ends with `cure`.
    """
    try:
        return getattr(owner, name)
    except AttributeError:
        version = ".".join(map(str, installed() or ()))
        reason = f"triton {version} has no {name}, which {TESTED} have"
        raise UnavailableError(f"{reason}; install one of these, or {cure}.") from None


@functools.cache
def prepare_interpreter() -> None:
    """Make loops work in the interpreter of Triton before 3.7 with numpy 2.4 or newer.

    That interpreter calls `int` on arrays of one element, which numpy no longer accepts.
    """
    version, numpy = installed(), installed("numpy")
    if version is None or version >= COUNTS_WITH_NEW_NUMPY or numpy is None or numpy < NEW_NUMPY:
        return
    from triton.runtime import interpreter  # a scan that is compiled does not need it

    patch = inside(interpreter, "_patch_lang_tensor", "use numpy<2.4")

    def patched(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        if scope:
            scope[0].set_attr(tensor, "__index__", _as_number)
        else:  # before 3.6 the patch is permanent
            tensor.__index__ = _as_number

    interpreter._patch_lang_tensor = patched


def _as_number(tensor: Any) -> int:
    return int(tensor.handle.data.item())
