"""Parsing and formatting of durations such as 90s, 3m and 1h30m."""

from __future__ import annotations

import re

from scanlab.errors import InputError

SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
MAX_HOURS = 720  # a month; more is a slip of the finger, and overflows timers


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as "90s", "3m", "1h30m" or a bare number of seconds.

    Raises:
        InputError: `text` is not a duration, or not more than 0.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InputError(f"duration {text!r}: must be a number, of seconds or with s, m or h: 90s, 3m or 1h30m.")
    seconds = sum(float(number) * SECONDS[unit or "s"] for number, unit in parts)
    if seconds <= 0:
        raise InputError(f"duration {text!r}: must be more than nothing, such as 3m.")
    if seconds > MAX_HOURS * SECONDS["h"]:
        raise InputError(f"duration {text!r}: must be at most {MAX_HOURS}h, which is a month.")
    return seconds


def spell_duration(seconds: float) -> str:
    """Return a duration as text, such as "45 s", "3 min 10 s" or "18 h 09 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole // 60 % 60:02d} min"
