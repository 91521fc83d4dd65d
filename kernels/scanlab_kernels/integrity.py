"""Integrity of compiled libraries: their content, and the users that can write to them."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
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
    private &= all(replacers(folder) is None for folder in library.parents)
    return private and digest_file(library).read_bytes().strip() == digest(library).encode()


def is_private(path: Path) -> bool:
    """Return whether `path` belongs to this user or root and no other user can write to it or replace its content."""
    status = path.stat()
    others_write = bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    is_sticky = stat.S_ISDIR(status.st_mode) and bool(status.st_mode & stat.S_ISVTX)
    return status.st_uid in (0, os.getuid()) and (is_sticky or not others_write)


def replacers(folder: Path) -> str | None:
    """Return who can replace what is in a folder beside this user, root and its group; None where nobody can.

    Everybody can where all may write, except with the sticky bit, such as in /tmp; its owner always can.
    """
    status = folder.stat()
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        return "everybody"
    return None if status.st_uid in (0, os.getuid(), _unknown_owner()) else f"its owner (uid {status.st_uid})"


@functools.cache
def _unknown_owner() -> int | None:
    """Return the uid that stands for all that have none in the namespace of this process, as root of the host has none.

    In the namespace of the host every uid is a user.
    """
    try:
        maps = Path("/proc/self/uid_map").read_text().split()
        return None if maps == ["0", "0", "4294967295"] else int(Path("/proc/sys/kernel/overflowuid").read_text())
    except OSError:  # not on Linux
        return None


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

    What others could have put into it before it was closed is deleted.

    Args:
        folder: In the cache folder, without symbolic links.

    Raises:
        UnavailableError: Others can replace the folder, or what is in it.
        OSError: It cannot be made.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = os.getuid()
    if not settings.CACHE.get() and folder.parent.stat().st_uid == own:
        folder.parent.chmod(0o700)
    if folder.is_dir() and folder.stat().st_uid == own and not (is_private(folder) and _has_known_owners(folder)):
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid == own:
        folder.chmod(0o700)
    for path in (folder, *folder.parents):
        who = replacers(path)
        if who is None and path in (folder, folder.parent) and not is_private(path):
            who = "its group"
        if who is not None:
            raise UnavailableError(
                f"{path} can be changed by {who}, whose code would then run as you: make it yours alone"
                f" (`chown $USER {path}; chmod go-w {path}`), or name another folder in the environment variable"
                " SCANLAB_CACHE."
            )


def _has_known_owners(folder: Path) -> bool:
    """Return whether everything below a folder belongs to this user or root."""
    return all(uid in (0, os.getuid()) for uid in _owners(folder))


def _owners(folder: Path) -> Iterator[int]:
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with suppress(FileNotFoundError):  # another process ends a build
                yield Path(place, name).lstat().st_uid
