"""Files that several processes write and read at the same moment."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path`, in a folder that is made where it is missing.

    A reader sees the old file or the new one, whole.

    Raises:
        OSError: It cannot be written; the previous content stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile, whose files other users cannot read: a profile may serve a whole machine.
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
