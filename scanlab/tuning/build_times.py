"""Build times of backends on this machine, kept beside the compiled kernels: estimates for the next tuning."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from scanlab.contract.backend import Backend
from scanlab.contract.files import read_text, write_atomically

NAME = "build_times.json"
# A build that is known to take more than this share of a short budget, in each process, is too slow for it.
BUDGET_SHARE = 0.3
SHORT_BUDGET_S = 60.0
MAX_BUILD_S = 1e6  # more is no duration of a build


class BuildTimes:
    """Longest build of each backend, and the shortest after the first of its source, which finds its code compiled.

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
        again_s = self._again_s(backend)
        return float(known["longest_s"]) if again_s is None else again_s

    def add(self, backend: Backend, seconds: float) -> None:
        """Keep the duration of a build."""
        if self._path is None:
            return
        known = self._load()
        before = known.get(backend.name, {"source": None, "again_s": math.inf, "longest_s": 0.0})
        is_same = before["source"] == backend.source_hash
        known[backend.name] = {
            "source": backend.source_hash,
            "again_s": min(seconds, before["again_s"]) if is_same else math.inf,
            "longest_s": max(seconds, before["longest_s"]),
        }
        with suppress(OSError):
            write_atomically(self._path, json.dumps(known, indent=1))

    def too_slow(self, backends: Sequence[Backend], budget_s: float | None) -> dict[str, str]:
        """Return why each backend is left out whose build takes too much of a short budget; never all of `backends`."""
        if budget_s is None or budget_s > SHORT_BUDGET_S:
            return {}
        about_s = {each.name: self._again_s(each) or 0.0 for each in backends}
        slow = {name: build_s for name, build_s in about_s.items() if build_s > BUDGET_SHARE * budget_s}
        if len(slow) == len(about_s):
            return {}
        return {
            name: f"building takes about {build_s:.0f} s in each process, too long for a budget of {budget_s:.0f} s;"
            f" give it {math.ceil(build_s / BUDGET_SHARE)} s or more, or name it alone with --backends"
            for name, build_s in slow.items()
        }

    def _again_s(self, backend: Backend) -> float | None:
        known = self._load().get(backend.name)
        is_known = known is not None and known["source"] == backend.source_hash and math.isfinite(known["again_s"])
        return float(known["again_s"]) if known is not None and is_known else None

    def _load(self) -> dict[str, dict[str, Any]]:
        if self._path is None:
            return {}
        try:
            found = json.loads(read_text(self._path))
        except (OSError, RecursionError, ValueError):
            return {}
        entries = found.items() if isinstance(found, Mapping) else ()
        return {name: each for name, each in entries if _is_entry(each)}


NO_BUILD_TIMES = BuildTimes(None)


def _is_entry(value: object) -> bool:
    if not isinstance(value, Mapping) or not isinstance(value.get("source"), str):
        return False
    again_s, longest_s = value.get("again_s"), value.get("longest_s")
    is_known = isinstance(longest_s, float) and 0.0 <= longest_s < MAX_BUILD_S
    return is_known and isinstance(again_s, float) and (0.0 <= again_s < MAX_BUILD_S or again_s == math.inf)
