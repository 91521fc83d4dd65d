"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from scanlab.report.formatting import (
    TIMES,
    TO,
    between,
    memory,
    milliseconds,
    per_second,
    shortest,
    three_digits,
    times,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.0, "1.00"), (9.996, "10.0"), (12.34, "12.3"), (1234.0, "1230"), (0.08347, "0.0835")],
)
def test_three_digits(value, text):
    assert three_digits(value) == text


@pytest.mark.parametrize(
    ("value_ms", "text"),
    [
        (0.0123, "12.3 µs"),
        (0.9999, "1.00 ms"),
        (1.0, "1.00 ms"),
        (81.94, "81.9 ms"),
        (999.9, "1.00 s"),
        (4e3, "4.00 s"),
    ],
)
def test_milliseconds(value_ms, text):
    assert milliseconds(value_ms) == text


def test_units():
    assert times(61.48) == f"61.5{TIMES}"
    assert times(20.0, shortest) == f"20{TIMES}"
    assert per_second(1.82e9) == "1.82 G/s"
    assert per_second(320.0) == "320 /s"
    assert [memory(value) for value in (0, 80 * 2**10, 3 * 2**20)] == ["0 B", "80.0 KiB", "3.00 MiB"]
    assert between(1.5, 2.0, milliseconds) == f"1.50 {TO} 2.00 ms"
    assert between(0.5, 2.0, milliseconds) == f"500 µs {TO} 2.00 ms"
    assert between(1.5, 2.0, times) == f"1.50{TIMES} {TO} 2.00{TIMES}"


@pytest.mark.parametrize("spell", [milliseconds, times, per_second, memory])
def test_no_number_is_no_text(spell):
    assert spell(math.nan) == ""
    assert between(math.nan, math.nan, spell) == ""
