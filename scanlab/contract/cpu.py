"""How many threads a kernel may use here, and how to hold torch to a number of them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from scanlab.contract.space import Tunable

P = ParamSpec("P")
R = TypeVar("R")


def cgroup_cpus(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPUs that the cgroup quota grants, or None where there is no quota.

    Reads the unified hierarchy (`cpu.max`) of this process's group and of every ancestor, and the v1
    files (`cpu.cfs_quota_us`, `cpu.cfs_period_us`); the tightest limit holds. A quota is time and not a
    set of CPUs: more threads than quota get throttled in bursts, which OpenMP runtimes do not know.
    """
    limits: list[float] = []
    group = Path("/")
    try:
        for line in membership.read_text().splitlines():
            hierarchy, controllers, path = line.split(":", 2)
            if hierarchy == "0" or "cpu" in controllers.split(","):
                group = Path(path)
    except OSError:
        return None
    for base in (root, root / "cpu"):
        for ancestor in (group, *group.parents):
            folder = base / ancestor.relative_to("/")
            for reader in (_quota_v2, _quota_v1):
                limit = reader(folder)
                if limit is not None:
                    limits.append(limit)
    return min(limits, default=None)


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return None if quota <= 0 else quota / period


def affinity_cpus() -> int:
    """CPUs the scheduler may place this process on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def usable_threads() -> int:
    """min(affinity, floor(cgroup quota)), at least 1: the threads that can really run at once."""
    quota = cgroup_cpus()
    usable = affinity_cpus() if quota is None else min(affinity_cpus(), int(quota))
    return max(1, usable)


def threads_tunable() -> Tunable:
    """The tunable `threads`: powers of two up to the usable threads, and all of them (the default)."""
    usable = usable_threads()
    counts = {1 << exponent for exponent in range(usable.bit_length()) if 1 << exponent <= usable} | {usable}
    return Tunable("threads", tuple(sorted(counts)), default=usable, summary="CPU threads the scan may use")


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Hold torch's intra-operator threads to `count` and restore what was set before."""
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pinned(function: Callable[P, R], threads: int) -> Callable[P, R]:
    """`function`, run with torch held to `threads` intra-operator threads."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch_threads(threads):
            return function(*args, **kwargs)

    return run
