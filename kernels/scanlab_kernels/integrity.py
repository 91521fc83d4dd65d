"""Integrity of compiled libraries: their content, and the users that can write to them."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from scanlab import settings
from scanlab.errors import UnavailableError


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_file(library: Path) -> Path:
    """Return the file beside a cached library that holds its digest."""
    return library.with_suffix(".sha256")


def is_intact(library: Path) -> bool:
    """Return whether a cached library exists, is whole, and could be written by this user and root only."""
    files = (library, digest_file(library))
    if not all(file.exists() for file in files):
        return False
    private = all(map(is_private, (*files, library.parent, library.parent.parent)))
    return private and digest_file(library).read_bytes().strip() == digest(library).encode()


def is_private(path: Path) -> bool:
    """Return whether `path` belongs to this user or root and no other user can write to it or replace its content."""
    status = path.stat()
    others_write = bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    is_sticky = stat.S_ISDIR(status.st_mode) and bool(status.st_mode & stat.S_ISVTX)
    return status.st_uid in (0, os.getuid()) and (is_sticky or not others_write)


def make_private(folder: Path) -> None:
    """Make the folder, and close it and the user's own cache folder above it to others.

    Raises:
        UnavailableError: Others can write to it or to the folder that $SCANLAB_CACHE names.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (folder,) if settings.CACHE.get() else (folder, folder.parent):
        if path.stat().st_uid == os.getuid():
            path.chmod(0o700)
    for path in (folder, folder.parent):
        if not is_private(path):
            raise UnavailableError(
                f"others than you can write to {path}, and their code would run as you: make it yours with"
                f" `chmod go-w {path}`, or name another folder in the environment variable SCANLAB_CACHE."
            )


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
