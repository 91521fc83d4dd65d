"""What served so far in this process, and why: scans and the ops around them."""

from __future__ import annotations

from scanlab.runtime import dispatch
from scanlab.runtime import ops as mixer


def explain() -> str:
    """Which backend served which scan, what the mixer's ops run on, and why; a line for each."""
    return "\n".join(filter(None, (dispatch.explain(), mixer.explain())))
