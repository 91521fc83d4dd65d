"""The tables against numbers computed by hand."""

from __future__ import annotations

import csv
import dataclasses
import io
import math

import pytest

from helpers.records import block, measurement, trial
from scanlab.contract.problem import ScanProblem
from scanlab.contract.verify import Verdict
from scanlab.report import tables
from scanlab.report.formatting import TIMES, TO

MS = 1_000_000
PROVED = Verdict(passed=True, errors={"out": 3e-7, "last_state": 1e-7}, tolerances={"out": 2e-5, "last_state": 2e-5})
OFF = Verdict(passed=False, errors={"out": 0.5, "last_state": 1e-7}, tolerances={"out": 2e-5, "last_state": 2e-5})
# Ratios to the reference within the blocks: 8/2, 12/3 and 10/2.5, that is 4 in each, while the machine slows down.
DRIFTING = measurement(
    *(block([1 * MS, 2 * MS, 3 * MS], [8 * MS]), block([2 * MS, 3 * MS, 4 * MS], [12 * MS])) * 2,
    *[block([2_500_000], [10 * MS])] * 2,
)
TRIALS = [
    trial(phase="comparison", backend="native", config={"threads": 2}, verdict=PROVED, measurement=DRIFTING),
    trial(backend="chunked", measurement=measurement(block([4 * MS], [8 * MS]))),
    trial(backend="associative", config={"chunk": 8}, state="wrong", verdict=OFF, measurement=None, reason="it is off"),
    trial(backend="associative", config={"chunk": 16}, state="crashed", verdict=None, measurement=None, reason="a | b"),
    trial(backend="compiled", config={}, state="crashed", verdict=None, measurement=None, reason="no compiler\nhere"),
    trial(backend="triton", config={}, state="rejected", verdict=None, measurement=None, reason="no GPU is visible"),
]


def rows(frame):
    return {row["backend"]: row for row in frame.to_dict("records")}


def test_the_speedup_table_has_the_numbers_of_the_samples():
    native = rows(tables.speedup_table(TRIALS))["native"]
    # All samples in order, each twice: 1 2 2 2.5 3 3 4.
    assert (native["quartile1_ms"], native["median_ms"], native["quartile3_ms"]) == pytest.approx((2.0, 2.5, 3.0))
    assert [native[name] for name in ("speedup", "speedup_low", "speedup_high")] == pytest.approx([4.0, 4.0, 4.0])
    # 4 for each of 1 x 4 x 8 x 2 state updates, in 2.5 ms.
    assert native["multiply_adds_per_s"] == pytest.approx(4 * 64 / 0.0025)
    assert native["error"] == 3e-7
    assert (native["peak_bytes"], native["build_ms"], native["first_call_ms"]) == (4096, 1.5, 2.5)
    assert (native["numbers_from"], native["reference"], native["state"]) == ("comparison", "reference threads=1", "ok")


def test_no_backend_is_dropped_and_each_failure_has_its_reason():
    table = tables.speedup_table(TRIALS)
    assert list(table["backend"]) == ["native", "chunked", "associative", "compiled", "triton"]
    found = rows(table)
    assert [found[name]["reason"] for name in ("compiled", "triton")] == ["no compiler\nhere", "no GPU is visible"]
    assert all(math.isnan(found["triton"][name]) for name in tables.NUMBERS)
    assert (found["associative"]["tried"], found["associative"]["failed"]) == (2, 2)


def test_the_readable_table_has_units_and_marks_numbers_of_a_search():
    readable = rows(tables.readable_speedups(tables.speedup_table(TRIALS)))
    native = readable["native"]
    assert (native["median"], native["quartiles"]) == ("2.50 ms", f"2.00 {TO} 3.00 ms")
    assert (native["speed-up"], native["95 % interval"]) == (f"4.00{TIMES}", f"4.00 {TO} 4.00")
    assert (native["multiply-adds"], native["error"], native["build"]) == ("102 k/s", "3.0e-07", "1.50 ms")
    assert [row["from"] for row in readable.values()] == ["comparison", "search", "", "", ""]
    settled = {backend: row["configuration, or why not"] for backend, row in readable.items()}
    assert settled["native"] == "threads=2"
    assert settled["associative"] == "chunk=8, wrong: it is off"
    assert settled["triton"] == "takes no part: no GPU is visible"
    assert readable["triton"]["median"] == ""


def test_a_few_blocks_have_no_interval():
    chunked = rows(tables.speedup_table(TRIALS))["chunked"]
    assert chunked["speedup"] == pytest.approx(2.0)
    assert math.isnan(chunked["speedup_low"])
    assert math.isnan(chunked["speedup_high"])
    assert rows(tables.readable_speedups(tables.speedup_table(TRIALS)))["chunked"]["95 % interval"] == "?"


def test_memory_that_nobody_could_tell_is_empty():
    unknown = trial(measurement=dataclasses.replace(measurement(), peak_bytes=None))
    assert tables.readable_speedups(tables.speedup_table([unknown]))["memory"][0] == ""


def test_the_error_table_has_the_worst_configuration_of_each_tensor():
    worse = Verdict(passed=True, errors={"out": 9e-6, "last_state": 0.0}, tolerances=PROVED.tolerances)
    table = tables.error_table([*TRIALS, trial(backend="native", config={"threads": 1}, verdict=worse)])
    native = table[table["backend"] == "native"].set_index("tensor")
    assert native.loc["out", ["config", "configurations", "worst_error"]].tolist() == ["threads=1", 2, 9e-6]
    assert native.loc["last_state", ["config", "worst_error"]].tolist() == ["threads=2", 1e-7]
    assert bool(native["passed"].all())
    associative = tables.readable_errors(table[table["backend"] == "associative"]).set_index("tensor")
    assert associative.loc["out", ["verdict", "used up"]].tolist() == ["WRONG", "exceeded"]
    assert associative.loc["last_state", ["verdict", "used up"]].tolist() == ["passed", "0.5%"]


def test_the_trial_table_has_every_trial_and_what_was_disturbed():
    disturbed = measurement(block([MS], [MS], disturbed="throttled"), block([MS, MS], [MS]))
    table = tables.trial_table([*TRIALS, trial(measurement=disturbed)])
    assert len(table) == len(TRIALS) + 1
    assert table.iloc[-1][["samples", "blocks", "disturbed_blocks"]].tolist() == [3, 2, 1]
    assert table.iloc[0]["started_at"] == "1970-01-01T00:16:40+00:00"


def test_failures_alike_are_one_row():
    again = trial(
        backend="triton",
        config={"warps": 4},
        state="rejected",
        verdict=None,
        measurement=None,
        reason="no GPU is visible",
    )
    table = rows(tables.failure_table([*TRIALS, again]))
    assert table["triton"]["configurations"] == "; warps=4"
    assert "native" not in table


def test_lengths_stand_in_columns():
    problem = ScanProblem(batch=1, dim=4, length=8, state=2)
    taken = measurement(block([3 * MS], [8 * MS]))
    members = [
        trial(phase="lengths", backend="native", problem=problem, measurement=taken),
        trial(phase="lengths", backend="native", problem=problem.replace(length=16), measurement=taken),
        trial(phase="lengths", backend="chunked", problem=problem.replace(length=16), measurement=taken),
    ]
    table = rows(tables.length_table(members))
    assert table == {
        "native": {"backend": "native", "8": "3.00 ms", "16": "3.00 ms"},
        "chunked": {"backend": "chunked", "8": "", "16": "3.00 ms"},
    }


def test_csv_reads_back():
    read = list(csv.DictReader(io.StringIO(tables.csv(tables.speedup_table(TRIALS)))))
    assert float(read[0]["speedup"]) == pytest.approx(4.0)
    assert read[-1]["median_ms"] == ""
    assert read[3]["reason"] == "no compiler\nhere"


def test_markdown_keeps_bars_and_line_ends_out_of_the_table():
    lines = tables.markdown(tables.failure_table(TRIALS)).splitlines()
    assert len(lines) == 2 + 4
    assert any("a \\| b" in line for line in lines)
    assert any("no compiler here" in line for line in lines)


def test_a_disturbed_time_is_unknown():
    noisy = trial(measurement=measurement(block([MS], [9 * MS])), state="disturbed", reason="8 of 9 blocks")
    row = tables.readable_speedups(tables.speedup_table([noisy])).iloc[0]
    assert [row[name] for name in ("median", "quartiles", "speed-up", "95 % interval", "multiply-adds")] == ["?"] * 5
    assert row["error"] == "1.0e-07"
