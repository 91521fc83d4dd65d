"""Threads: how many this process may use, and how to hold torch's ops to a number of them."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from scanlab.contract.space import Tunable

P = ParamSpec("P")
R = TypeVar("R")


def cgroup_cpus() -> float | None:
    """Return the CPUs that the cgroup quota grants, or None if there is no quota.

    Reads the unified hierarchy (`cpu.max`) of this process's group and of every ancestor, and the v1
    files (`cpu.cfs_quota_us`, `cpu.cfs_period_us`); the tightest limit holds. A quota is time and not a
    set of CPUs: more threads than quota get throttled in bursts, which OpenMP runtimes do not know.
    """
    limits: list[float] = []
    root, group = Path("/sys/fs/cgroup"), Path("/")
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
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
    """Return how many CPUs the scheduler may place this process on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def usable_threads() -> int:
    """Return how many threads can run at once: min(affinity, floor(cgroup quota)), at least 1."""
    quota = cgroup_cpus()
    usable = affinity_cpus() if quota is None else min(affinity_cpus(), int(quota))
    return max(1, usable)


# The value of the tunable `threads` that names no number: as many threads as torch's own ops take at each call.
FOLLOW_TORCH = 0


def threads_tunable() -> Tunable:
    """Return the tunable `threads`.

    Its default follows `torch.get_num_threads()`. A search tries powers of two below the usable threads beside it; any
    other number of usable threads is legal where a caller names it.
    """
    usable = usable_threads()
    counts = tuple(1 << exponent for exponent in range(usable.bit_length()) if 1 << exponent < usable)
    return Tunable(
        "threads",
        (FOLLOW_TORCH, *counts),
        default=FOLLOW_TORCH,
        summary="CPU threads; 0 takes as many as torch does",
        also_legal=tuple(count for count in range(1, usable + 1) if count not in counts),
    )


def thread_count(config: Mapping[str, object]) -> int:
    """Return the threads that a call under `config` takes now: those it names, else those of torch."""
    named = config.get("threads", FOLLOW_TORCH)
    assert isinstance(named, int)
    return torch.get_num_threads() if named == FOLLOW_TORCH else named


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run torch's ops in this block, on the calling thread, with `count` threads; 0 changes nothing.

    Other threads of the process keep their count wherever torch runs on a known OpenMP runtime. Elsewhere torch has
    one count for the whole process, which is set and restored.
    """
    before = torch.get_num_threads()  # also initialises torch's count of this thread, which would undo a later setting
    if count in (FOLLOW_TORCH, before):
        yield
        return
    setters = _thread_local_setters()
    if setters is None:
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)
        return
    set_openmp, set_mkl = setters
    set_openmp(count)
    mkl_before = set_mkl(count)
    try:
        yield
    finally:
        set_openmp(before)
        set_mkl(mkl_before)


@functools.cache
def _thread_local_setters() -> tuple[Callable[[int], object], Callable[[int], int]] | None:
    """Return setters of the threads of OpenMP and of MKL for the calling thread alone, or None if unknown.

    The second returns the setting before it, where 0 stands for that of the process.
    """
    set_openmp = next(filter(_is_heard_by_torch, map(_openmp_setter, _openmp_runtimes())), None)
    if set_openmp is None:
        return None
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        set_mkl: Callable[[int], int] = library.MKL_Set_Num_Threads_Local
    except (OSError, AttributeError):  # a torch without MKL
        return set_openmp, lambda count: 0
    return set_openmp, set_mkl


def _openmp_setter(runtime: str) -> Callable[[int], object]:
    setter = ctypes.CDLL(runtime).omp_set_num_threads
    setter.argtypes, setter.restype = [ctypes.c_int], None
    return setter


def _is_heard_by_torch(set_openmp: Callable[[int], object]) -> bool:
    """Return whether torch runs on the OpenMP runtime of this setter."""
    before = torch.get_num_threads()
    set_openmp(before + 1)
    heard = torch.get_num_threads() == before + 1
    set_openmp(before)
    return heard


def _openmp_runtimes() -> list[str]:
    """Return the OpenMP runtimes that this process has loaded; packages such as scikit-learn bring one of their own."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    names = ("libgomp", "libiomp", "libomp")
    return sorted({line.split()[-1] for line in lines if any(f"/{name}" in line for name in names)})


def pinned(function: Callable[P, R], threads: int) -> Callable[P, R]:
    """Return `function`, run on `threads` threads of torch; on as many as torch takes where `threads` is 0."""
    if threads == FOLLOW_TORCH:
        return function

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch_threads(threads):
            return function(*args, **kwargs)

    return run
