"""Folders of this user, and files that several processes write and read at the same moment."""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from pathlib import Path
from typing import Literal

import platformdirs

MAX_TEXT_BYTES = 2**28  # of a profile, a suite or a report's data; records may be larger


def own_folder(kind: Literal["cache", "data"]) -> Path:
    """Return this user's folder for caches or data of scanlab, which need not exist.

    A user without a home folder, as in some containers, has one below the system's folder for temporary files.
    """
    find = platformdirs.user_cache_path if kind == "cache" else platformdirs.user_data_path
    try:
        folder = find("scanlab", appauthor=False)
    except RuntimeError:  # of new versions; old ones return ~/...
        folder = Path()
    if folder.is_absolute():
        return folder
    return Path(tempfile.gettempdir()) / f"scanlab-{os.getuid()}" / kind


def expect_regular(path: Path) -> None:
    """Raise OSError if something else than a file is at `path`: replacing /dev/null would harm every program."""
    if path.exists() and not path.is_file():
        kind = errno.EISDIR if path.is_dir() else errno.EINVAL
        raise OSError(kind, "it is a folder" if path.is_dir() else "it is not a regular file", str(path))


def expect_writable(folder: Path) -> None:
    """Make `folder` where it is missing; raise OSError if no file can be created in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Return the text of a regular file: a pipe would be waited for, and a device may never end.

    Raises:
        OSError: It cannot be read, or is larger than what scanlab writes and people do.
        UnicodeDecodeError: It has another encoding.
    """
    expect_regular(path)
    size = path.stat().st_size
    if size > MAX_TEXT_BYTES:
        raise OSError(errno.EFBIG, f"it has {size} bytes, and at most {MAX_TEXT_BYTES} are read", str(path))
    return path.read_text(encoding)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path`, in a folder that is made where it is missing.

    A reader sees the old file or the new one, whole.

    Raises:
        OSError: It cannot be written; the previous content stays.
    """
    path = Path(os.path.realpath(path))  # the file behind a symbolic link, which stays
    expect_regular(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile, whose files other users cannot read: a profile may serve a whole machine.
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; Windows has the latter always."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
