"""Build times of backends on this machine, kept beside the compiled kernels: estimates for the next tuning."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from scanlab.contract.backend import Backend
from scanlab.contract.files import write_atomically

NAME = "build_times.json"
# A build that is known to take more than this share of the budget, in each process, is too slow for it.
BUDGET_SHARE = 0.3


class BuildTimes:
    """Longest build of each backend, and the shortest one of its present source, which finds its code compiled.

    A file that cannot be read counts as empty, and one that cannot be written is left alone: only estimates are lost.

    Args:
        folder: Holds the file; nothing is known or kept without one.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / NAME

    def estimate_s(self, backend: Backend) -> float | None:
        """Return the seconds that the next build is expected to take; None where nothing is known."""
        known = self._load().get(backend.name)
        if known is None:
            return None
        return float(known["shortest_s" if known["source"] == backend.source_hash else "longest_s"])

    def add(self, backend: Backend, seconds: float) -> None:
        """Keep the duration of a build."""
        if self._path is None:
            return
        known = self._load()
        before = known.get(backend.name, {"source": None, "shortest_s": math.inf, "longest_s": 0.0})
        is_same = before["source"] == backend.source_hash
        known[backend.name] = {
            "source": backend.source_hash,
            "shortest_s": min(seconds, before["shortest_s"]) if is_same else seconds,
            "longest_s": max(seconds, before["longest_s"]),
        }
        with suppress(OSError):
            write_atomically(self._path, json.dumps(known, indent=1))

    def too_slow(self, backends: Sequence[Backend], budget_s: float | None) -> dict[str, str]:
        """Return why each backend is left out whose build takes too much of a budget; never all of `backends`."""
        about_s = {each.name: self.estimate_s(each) or 0.0 for each in backends}
        slow = {name: s for name, s in about_s.items() if budget_s is not None and s > BUDGET_SHARE * budget_s}
        if len(slow) == len(about_s):
            return {}
        return {
            name: f"building takes about {build_s:.0f} s in each process, too long for a budget of {budget_s:.0f} s;"
            f" give it {math.ceil(build_s / BUDGET_SHARE)} s or more, or name it alone with --backends"
            for name, build_s in slow.items()
        }

    def _load(self) -> dict[str, dict[str, Any]]:
        if self._path is None:
            return {}
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        entries = found.items() if isinstance(found, Mapping) else ()
        return {name: each for name, each in entries if _is_entry(each)}


NO_BUILD_TIMES = BuildTimes(None)


def _is_entry(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("source"), str)
        and all(isinstance(value.get(key), float) for key in ("shortest_s", "longest_s"))
    )
