"""State of the system around a block of samples: throttling, heat, steal, other processes, frequency."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from scanlab.contract.cpu import usable_threads

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

N = TypeVar("N", int, float)

CPUS = Path("/sys/devices/system/cpu")
MAX_CPUS = 8  # of those whose files are read
CPUINFO = Path("/proc/cpuinfo")

# A block is disturbed where others took more than this share of the CPU time that it could have used. The
# system counts in ticks of 10 ms, so that differences of a few ticks mean nothing.
DISTURBING_SHARE = 0.10
TICKS_MEAN_NOTHING_MS = 30.0
# Only if the system does not count the CPU time of others.
DISTURBING_SWITCHES_PER_S = 200.0


@dataclass(frozen=True)
class Delta:
    """Difference between two snapshots; None if the system does not tell."""

    throttled: int | None
    steal_ms: float | None
    involuntary: int | None
    neighbours_ms: float | None
    wall_ms: float
    overheated: int | None = None
    mhz: float | None = None

    @property
    def disturbed(self) -> str | None:
        """Reason not to trust samples taken meanwhile, or None."""
        limit_ms = max(TICKS_MEAN_NOTHING_MS, DISTURBING_SHARE * self.wall_ms * usable_threads())
        if self.throttled:
            return f"the cgroup quota ran out {self.throttled} times"
        if self.overheated:
            return f"the CPU was slowed {self.overheated} times because it was too hot"
        if self.steal_ms is not None and self.steal_ms > limit_ms:
            return f"the hypervisor took {self.steal_ms:.0f} ms"
        if self.neighbours_ms is not None:
            return f"other processes used {self.neighbours_ms:.0f} ms of CPU" if self.neighbours_ms > limit_ms else None
        if self.involuntary is not None and self.involuntary > DISTURBING_SWITCHES_PER_S * self.wall_ms / 1e3:
            return f"{self.involuntary} involuntary context switches"
        return None


@dataclass(frozen=True)
class Snapshot:
    """Counters of the system at one moment."""

    throttled: int | None
    steal_ms: float | None
    involuntary: int | None
    busy_ms: float | None
    own_ms: float
    wall_ms: float
    overheated: int | None
    mhz: float | None

    def until(self, later: Snapshot) -> Delta:
        """Return the difference from this snapshot to a later one."""
        busy_ms = _difference(self.busy_ms, later.busy_ms)
        own_ms = later.own_ms - self.own_ms
        return Delta(
            throttled=_difference(self.throttled, later.throttled),
            steal_ms=_difference(self.steal_ms, later.steal_ms),
            involuntary=_difference(self.involuntary, later.involuntary),
            neighbours_ms=None if busy_ms is None else max(0.0, round(busy_ms - own_ms, 3)),
            wall_ms=later.wall_ms - self.wall_ms,
            overheated=_difference(self.overheated, later.overheated),
            mhz=later.mhz,
        )


def snapshot() -> Snapshot:
    """Return the counters now."""
    steal_ms, busy_ms = _system_times_ms()
    return Snapshot(
        throttled=_throttled(),
        steal_ms=steal_ms,
        involuntary=None if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
        busy_ms=busy_ms,
        own_ms=time.process_time_ns() / 1e6,
        wall_ms=time.monotonic_ns() / 1e6,
        overheated=_overheated(),
        mhz=_mhz(),
    )


def observe(seconds: float) -> str | None:
    """Sleep for `seconds`, and return the disturbance that samples would have seen, or None."""
    before = snapshot()
    time.sleep(seconds)
    return before.until(snapshot()).disturbed


def _difference(before: N | None, after: N | None) -> N | None:
    return None if before is None or after is None else after - before


def _system_times_ms() -> tuple[float | None, float | None]:
    """Return the time stolen by the hypervisor and the time in which CPUs were busy, since boot."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, _, _, irq, softirq, steal = (int(field) for field in file.readline().split()[1:9])
    except (OSError, ValueError):
        return None, None
    tick_ms = 1e3 / os.sysconf("SC_CLK_TCK")
    return steal * tick_ms, (user + nice + system + irq + softirq) * tick_ms


def _throttled() -> int | None:
    """Return the number of periods in which the quota of this process's cgroup (version 1 or 2) ran out."""
    for path in _cpu_stat_paths():
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith("nr_throttled "):
                return int(line.split()[1])
    return None


def _own_cpus() -> list[Path]:
    """Return the folders of a few CPUs that this process may use: reading all takes long on a large machine."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return [CPUS / f"cpu{number}" for number in usable[:MAX_CPUS]]


def _counts(name: str) -> list[int]:
    """Return the numbers in the file of this name of each CPU; empty if one is missing."""
    found = []
    for cpu in _own_cpus():
        try:
            found.append(int((cpu / name).read_text()))
        except (OSError, ValueError):
            return []
    return found


def _overheated() -> int | None:
    """Return how often the CPUs were slowed because of heat."""
    counts = _counts("thermal_throttle/core_throttle_count")
    return sum(counts) if counts else None


def _mhz() -> float | None:
    """Return the mean frequency of the CPUs now, or that of the first CPU as the system sees it."""
    counts = _counts("cpufreq/scaling_cur_freq")
    if counts:
        return sum(counts) / len(counts) / 1e3
    try:
        with CPUINFO.open() as file:
            return next((float(line.partition(":")[2]) for line in file if line.startswith("cpu MHz")), None)
    except (OSError, ValueError):
        return None


def _cpu_stat_paths() -> list[Path]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    root, paths = Path("/sys/fs/cgroup"), []
    for line in lines:
        hierarchy, controllers, group = line.split(":", 2)
        if hierarchy == "0":
            paths.append(root / group.lstrip("/") / "cpu.stat")
        elif "cpu" in controllers.split(","):
            paths += [root / "cpu" / group.lstrip("/") / "cpu.stat", root / "cpu" / "cpu.stat"]
    return [*paths, root / "cpu.stat"]
