"""`scanlab doctor`: examine the machine, the compiler and the backends, and name cures."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import typer
from rich.markup import escape

from scanlab.cli.console import AsJson, Exit, out, plain_table, print_json
from scanlab.contract import registry
from scanlab.contract.compiler import CURE, find_compiler
from scanlab.contract.cpu import affinity_cpus, cgroup_cpus, usable_threads
from scanlab.contract.machine import this_machine
from scanlab.errors import ProfileError
from scanlab.runtime.profile import load_profile, profile_path
from scanlab_kernels.selective_scan.native.backend import extension as kernels

CAN_RUN = "can run here"
NO_COMPILER = "there is no C++ compiler"
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# glibc keeps blocks of up to the first (its own upper bound), and all that is free up to the second.
KEEP_FREED = {"MALLOC_MMAP_THRESHOLD_": 32 << 20, "MALLOC_TRIM_THRESHOLD_": 8 << 30}


@dataclass(frozen=True)
class Finding:
    """Finding of doctor on one subject."""

    subject: str
    fine: bool
    found: str
    cure: str = ""


def doctor(as_json: AsJson = False) -> None:
    """Show the machine, the compiler, the usable threads, and every fault with its reason and cure.

    Exits with 1 where something is wrong.

    Example:
        scanlab doctor
    """
    findings = [
        _machine(),
        _threads(),
        _openmp(),
        _huge_pages(),
        _freed_memory(),
        _compiler(),
        _gpu(),
        _profile(),
        *_backends(),
    ]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        table = plain_table("", "", "", header=False)
        for finding in _summarized(findings):
            mark = "[green]ok[/]" if finding.fine else "[red]--[/]"
            noun = "hint" if finding.fine else "cure"
            cure = f"\n[dim]{noun}: {escape(finding.cure)}[/]" if finding.cure else ""
            table.add_row(mark, f"[bold]{finding.subject}[/]", escape(finding.found) + cure)
        out.print(table)
    if not all(finding.fine for finding in findings):
        raise typer.Exit(Exit.CHECK_FAILED)


def _summarized(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings with one line for all backends that can run."""
    fine = [finding for finding in findings if finding.fine and finding.found == CAN_RUN]
    names = ", ".join(finding.subject.removeprefix("backend ") for finding in fine)
    rest = [finding for finding in findings if finding not in fine]
    return [*rest, Finding("backends", True, f"{len(fine)} can run here: {names}")]


def _machine() -> Finding:
    machine = this_machine()
    gibibytes = machine.silicon.memory_bytes / 2**30
    caches = ", ".join(machine.silicon.caches)
    return Finding("machine", True, f"{machine.describe()}; {gibibytes:.0f} GiB; {caches}; id {machine.silicon_id}")


def _threads() -> Finding:
    quota = cgroup_cpus()
    granted = "no cgroup quota" if quota is None else f"a cgroup quota of {quota:g} CPUs"
    found = f"{usable_threads()} usable: {os.cpu_count()} CPUs, {affinity_cpus()} in the affinity mask, {granted}"
    if torch.get_num_threads() > usable_threads():
        return Finding(
            "threads",
            False,
            f"{found}; torch starts {torch.get_num_threads()}",
            f"set OMP_NUM_THREADS={usable_threads()}: threads without a CPU stall the others at every barrier.",
        )
    return Finding("threads", True, found)


def _openmp() -> Finding:
    """Report several OpenMP runtimes: each keeps a pool of spinning threads, and they compete for the same CPUs."""
    torch.ones(1 << 16).exp()  # makes torch load and start its runtime
    mapped = _mapped_files()
    if not mapped:
        return Finding("OpenMP", True, "not looked at: this system has no /proc")
    runtimes = sorted(
        path for path in mapped if any(name in Path(path).name for name in ("libgomp", "libiomp", "libomp"))
    )
    if len(runtimes) > 1:
        return Finding("OpenMP", False, f"{len(runtimes)} runtimes: {', '.join(runtimes)}", "import torch first.")
    return Finding("OpenMP", True, "one runtime" if runtimes else "none loaded")


def _mapped_files() -> set[str]:
    """Return the files that this process has mapped; none where the system does not list them."""
    try:
        return {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    except OSError:
        return set()


def _huge_pages() -> Finding:
    """Report the page size of large tensors: touching fresh memory in small pages takes as long as a scan of it."""
    try:
        modes = HUGE_PAGES.read_text()
    except OSError:
        return Finding("huge pages", True, "this system does not say")
    mode = modes.partition("[")[2].partition("]")[0]
    asked = os.environ.get("THP_MEM_ALLOC_ENABLE") == "1"
    if mode == "madvise" and not asked:
        cure = "for large images and long sequences set THP_MEM_ALLOC_ENABLE=1, with which torch asks too"
        return Finding("huge pages", True, "on request (madvise): scanlab's own large outputs request them", cure)
    meanings = {"always": "always on", "madvise": "on request: by scanlab and torch", "never": "off"}
    return Finding("huge pages", True, meanings.get(mode, modes.strip()))


def _freed_memory() -> Finding:
    """Report whether freed blocks return to the system, which hands them out again page by page, zeroed."""
    mapped = _mapped_files()
    if any(name in Path(path).name for path in mapped for name in ("jemalloc", "tcmalloc", "mimalloc")):
        return Finding("freed memory", True, "kept by the allocator that is loaded instead of the system's")
    if platform.libc_ver()[0] != "glibc":
        return Finding("freed memory", True, "this system's allocator is not known")
    if all(name in os.environ for name in KEEP_FREED):
        return Finding("freed memory", True, "large blocks are kept: glibc's thresholds are set")
    settings = " ".join(f"{name}={threshold}" for name, threshold in KEEP_FREED.items())
    cure = f"for large images and long sequences set {settings}, with which it keeps them"
    found = "glibc frees blocks of more than 31 MiB, and asks for zeroed ones again"
    return Finding("freed memory", True, found, cure)


def _compiler() -> Finding:
    compiler = find_compiler()
    if compiler is None:
        if named := os.environ.get("CXX"):
            return Finding("compiler", False, f"CXX={named!r} does not run", f"{CURE}.")
        if kernels.unavailable() is None:
            return Finding("compiler", True, "none; the native kernels need none here", f"for other backends, {CURE}.")
        return Finding("compiler", False, "none", f"{CURE}.")
    return Finding("compiler", True, compiler.version)


def _gpu() -> Finding:
    gpus = this_machine().silicon.gpus
    return Finding("GPU", True, ", ".join(gpus) or "none; the CPU backends serve")


def _profile() -> Finding:
    try:
        profile = load_profile()
    except ProfileError as error:
        return Finding("profile", False, str(error))
    if profile is None:
        return Finding("profile", True, "nothing was tuned here yet", "run `scanlab tune`.")
    return Finding("profile", True, f"choices for problems: {len(profile.entries)}, in {profile_path()}")


def _backends() -> list[Finding]:
    loaded, failures = registry.load_all()
    findings = []
    for each in loaded:
        reason = each.unavailable()
        # A backend for a GPU is not missing where there is no GPU.
        expected = reason is not None and not set(each.capabilities.devices) & _devices()
        # Nor is one that compiles code at run time where a wheel brought the kernels: the compiler has its own line.
        expected |= reason is not None and NO_COMPILER in reason and kernels.unavailable() is None
        findings.append(Finding(f"backend {each.name}", reason is None or expected, reason or CAN_RUN))
    return findings + [Finding(f"backend {name}", False, reason) for name, reason in failures.items()]


def _devices() -> set[str]:
    return {"cpu", "cuda"} if torch.cuda.is_available() else {"cpu"}
