"""Integrity of compiled libraries: their content, and the users that can write to them."""

from __future__ import annotations

import hashlib
import os
import shutil
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
    """Return whether a cached library exists, is whole, and could be written by this user and root only.

    Args:
        library: Its path without symbolic links, which others could point elsewhere before it is loaded.
    """
    files = (library, digest_file(library))
    if not all(file.is_file() for file in files):
        return False
    private = all(map(is_private, (*files, library.parent, library.parent.parent)))
    private &= not any(map(is_open_to_all, library.parents))
    return private and digest_file(library).read_bytes().strip() == digest(library).encode()


def is_private(path: Path) -> bool:
    """Return whether `path` belongs to this user or root and no other user can write to it or replace its content."""
    status = path.stat()
    others_write = bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    is_sticky = stat.S_ISDIR(status.st_mode) and bool(status.st_mode & stat.S_ISVTX)
    return status.st_uid in (0, os.getuid()) and (is_sticky or not others_write)


def is_open_to_all(folder: Path) -> bool:
    """Return whether every user can replace what is in a folder, as in none with the sticky bit, such as /tmp."""
    mode = folder.stat().st_mode
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


def forbid_others_to_write(path: Path) -> None:
    """Take from everyone but its owner the right to write to a file, which a wide umask gives."""
    path.chmod(stat.S_IMODE(path.stat().st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))


def discard_unless_private(folder: Path) -> None:
    """Delete a folder that is a link, or that other users than this one and root made, filled or can write to."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists() and not all(
        is_private(path) and not path.is_symlink() for path in (folder, *folder.iterdir())
    ):
        shutil.rmtree(folder)


def make_private(folder: Path) -> None:
    """Make the folder, and close it and the user's own cache folder above it to others.

    Args:
        folder: In the cache folder, without symbolic links.

    Raises:
        UnavailableError: Others can write to it or to the folder that $SCANLAB_CACHE names, or everybody to one above.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    for path in (folder,) if settings.CACHE.get() else (folder, folder.parent):
        if path.stat().st_uid == os.getuid():
            path.chmod(0o700)
    for path in (folder, *folder.parents):
        if is_open_to_all(path) or (path in (folder, folder.parent) and not is_private(path)):
            raise UnavailableError(
                f"others than you can write to {path}, and their code would run as you: make it yours with"
                f" `chmod go-w {path}`, or name another folder in the environment variable SCANLAB_CACHE."
            )
