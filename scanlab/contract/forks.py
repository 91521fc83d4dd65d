"""Forks of this process, remembered from the first import of scanlab on.

OpenMP's threads do not survive a fork: a child that asks the copied runtime for a team waits for ever. A library that
is first loaded in the child cannot tell that there was a fork, so Python remembers it.
"""

from __future__ import annotations

import os

_forked = False


def has_forked() -> bool:
    """Return whether this process is the child of a process that had imported scanlab."""
    return _forked


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
    os.register_at_fork(after_in_child=_note_fork)
