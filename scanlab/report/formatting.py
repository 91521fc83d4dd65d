"""Format numbers for people: three digits and a unit, or nothing if there is no number."""

from __future__ import annotations

import math
from collections.abc import Callable

TIMES = "\N{MULTIPLICATION SIGN}"
TO = "\N{EN DASH}"
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (0.0, ""))
BINARY_PREFIXES = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (0.0, "B"))


def three_digits(value: float) -> str:
    """Return `value` with three significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    # Rounding first: 9.996 has its digits after 10.0, not after 9.99.
    rounded = float(f"{value:.3g}")
    return f"{rounded:.{max(0, 2 - math.floor(math.log10(abs(rounded))))}f}"


def shortest(value: float) -> str:
    """Return `value` without trailing zeros, for the ticks of an axis."""
    return f"{value:g}"


def milliseconds(value_ms: float, digits: Callable[[float], str] = three_digits) -> str:
    """Return a time: "1.23 ms", "12.3 µs" or "1.23 s"."""
    if math.isnan(value_ms):
        return ""
    rounded = float(f"{value_ms:.3g}")
    scale, unit = (1e3, "µs") if rounded < 1.0 else (1.0, "ms") if rounded < 1e3 else (1e-3, "s")
    return f"{digits(value_ms * scale)} {unit}"


def times(ratio: float, digits: Callable[[float], str] = three_digits) -> str:
    """Return a ratio: "12.3×"."""
    return "" if math.isnan(ratio) else f"{digits(ratio)}{TIMES}"


def percent(share: float) -> str:
    """Return a share with two significant digits at least: "55 %", "3.4 %"."""
    return f"{share:.1%}".replace("%", " %") if abs(share) < 0.1 else f"{share:.0%}".replace("%", " %")


def per_second(rate: float) -> str:
    """Return a rate without its noun: "1.23 G/s"."""
    if math.isnan(rate):
        return ""
    scale, prefix = next(pair for pair in PREFIXES if rate >= pair[0])
    return f"{three_digits(rate / (scale or 1.0))} {prefix}/s"


def memory(value_bytes: float) -> str:
    """Return an amount of memory: "1.50 MiB", "80.0 KiB" or "0 B"."""
    if math.isnan(value_bytes):
        return ""
    scale, unit = next(pair for pair in BINARY_PREFIXES if value_bytes >= pair[0])
    return f"{three_digits(value_bytes / (scale or 1.0))} {unit}"


def scientific(value: float) -> str:
    """Return an error: "1.2e-07"."""
    return "" if math.isnan(value) else f"{value:.1e}"


def between(low: float, high: float, spell: Callable[[float], str]) -> str:
    """Return a range of two numbers of one kind, the unit once where it is the same: "1.20 – 1.31 ms"."""
    if math.isnan(low) or math.isnan(high):
        return ""
    first, last = spell(low), spell(high)
    number, _, unit = first.partition(" ")
    return f"{number if unit and last.endswith(f' {unit}') else first} {TO} {last}"
