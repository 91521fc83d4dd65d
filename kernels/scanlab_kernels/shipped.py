"""The compiled libraries that a wheel brings, and why one of them does not serve."""

from __future__ import annotations

import functools
import json
import platform
import sys
from pathlib import Path
from typing import TypedDict

from scanlab_kernels.integrity import digest

FOLDER = Path(__file__).parent / "binaries"
MANIFEST = FOLDER / "manifest.json"


class Entry(TypedDict):
    """A library in the manifest: its file, the digest of that, and the hash of the sources that it was built from."""

    file: str
    sha256: str
    sources: str


class Manifest(TypedDict):
    """Content of the folder, and the machines that it is for."""

    machine: str
    libraries: dict[str, Entry]


@functools.cache
def find(name: str, sources: str) -> tuple[Path | None, str | None]:
    """Return the shipped library of an extension, or None and the reason why it cannot serve.

    There is no reason where none was shipped: in a source tree, and in a wheel for any machine.

    Args:
        name: Name of the extension.
        sources: Hash of its sources as they are now.
    """
    try:
        manifest: Manifest = json.loads(MANIFEST.read_text())
    except FileNotFoundError:
        return None, None
    entry = manifest["libraries"].get(name)
    if entry is None:
        return None, None
    library = FOLDER / entry["file"]
    if sys.platform != "linux" or platform.machine() != manifest["machine"]:
        reason = f"it is for Linux on {manifest['machine']}"
    elif entry["sources"] != sources:
        reason = "the sources beside it were changed"
    elif not library.exists() or digest(library) != entry["sha256"]:
        reason = "it is damaged (its SHA-256 is not that of the manifest); reinstall scanlab"
    else:
        return library, None
    return None, f"{library} is not used: {reason}"
