"""System state around a block: disturbances, and what is none."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from scanlab.bench import system_state
from scanlab.bench.system_state import Delta, snapshot

NAMES = ("throttled", "steal_ms", "involuntary", "neighbours_ms", "wall_ms")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((2, 0.0, 0, 0.0, 100.0), "quota ran out 2 times"),
        ((0, 900.0, 0, 0.0, 100.0), "hypervisor took 900 ms"),
        ((0, 0.0, 0, 900.0, 100.0), "other processes used 900 ms"),
        ((None, None, 900, None, 100.0), "900 involuntary context switches"),
    ],
)
def test_what_others_take_disturbs(values, reason):
    assert reason in str(Delta(**dict(zip(NAMES, values, strict=True))).disturbed)


@pytest.mark.parametrize(
    "values",
    [
        (0, 0.0, 0, 0.0, 100.0),
        (0, 20.0, 900, 20.0, 1.0),  # two ticks are no measure; switches count only where CPU time does not
        (None, None, None, None, 1.0),
    ],
)
def test_nothing_or_too_little_to_tell_does_not(values):
    assert Delta(**dict(zip(NAMES, values, strict=True))).disturbed is None


def test_heat_disturbs_and_the_frequency_is_kept(tmp_path, monkeypatch):
    for number in os.sched_getaffinity(0):
        cpu = tmp_path / f"cpu{number}"
        (cpu / "thermal_throttle").mkdir(parents=True)
        (cpu / "cpufreq").mkdir()
        (cpu / "thermal_throttle" / "core_throttle_count").write_text("7\n")
        (cpu / "cpufreq" / "scaling_cur_freq").write_text("2500000\n")
    monkeypatch.setattr(system_state, "CPUS", tmp_path)
    before = snapshot()
    assert before.until(snapshot()).overheated == 0
    (cpu / "thermal_throttle" / "core_throttle_count").write_text("9\n")
    change = before.until(snapshot())
    assert (change.overheated, change.mhz) == (2, 2500.0)
    assert change.disturbed == "the CPU was slowed 2 times because it was too hot"


def test_without_counts_of_its_own_a_cpu_has_the_frequency_that_the_system_says(tmp_path, monkeypatch):
    monkeypatch.setattr(system_state, "CPUS", tmp_path / "missing")
    monkeypatch.setattr(system_state, "CPUINFO", tmp_path / "cpuinfo")
    assert (snapshot().overheated, snapshot().mhz) == (None, None)
    (tmp_path / "cpuinfo").write_text("processor\t: 0\ncpu MHz\t\t: 2445.424\n")
    assert snapshot().mhz == 2445.424


@pytest.mark.timing
def test_a_neighbour_is_seen_and_our_own_work_is_not_taken_for_one():
    if snapshot().busy_ms is None:
        pytest.skip("this system does not count the CPU time of others")
    before = snapshot()
    own_until = time.process_time() + 0.3
    while time.process_time() < own_until:
        pass
    alone = before.until(snapshot())
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        before = snapshot()
        time.sleep(0.5)
        beside = before.until(snapshot())
    finally:
        neighbour.kill()
        neighbour.wait()
    # Whatever else runs here, our own 300 ms are no part of what others used.
    assert alone.neighbours_ms <= alone.wall_ms * _cpus() - 250
    assert beside.neighbours_ms >= 100


def _cpus() -> int:
    with open("/proc/stat") as file:
        return sum(line.startswith("cpu") for line in file) - 1
