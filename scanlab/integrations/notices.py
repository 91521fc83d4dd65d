"""Warnings that are logged once in a process."""

from __future__ import annotations

import functools
import logging

log = logging.getLogger("scanlab")


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning unless it was logged before."""
    log.warning("scanlab: %s", message)
