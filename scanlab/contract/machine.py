"""The machine that runs: hardware facts, which key every result, and the software that compiled and ran the kernels."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from scanlab.contract.compiler import find_compiler
from scanlab.contract.cpu import usable_threads

CPUINFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
# Instruction sets that a kernel or a code generator may choose between, on x86 and on ARM.
KERNEL_FLAGS = (
    *(
        "sse4_1",
        "sse4_2",
        "avx",
        "avx2",
        "f16c",
        "fma",
        "bmi2",
        "avx_vnni",
        "avx512f",
        "avx512bw",
        "avx512dq",
        "avx512vl",
    ),
    *("avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimdhp", "asimddp", "sve", "sve2", "bf16", "i8mm"),
)


# An instruction set that only one of two machines has makes other kernels win; another number of cores or another size
# of cache moves the best block size and the best number of threads.
ISA_WEIGHT = 4.0
CACHE_UNITS = {"K": 10, "M": 20, "G": 30}


@dataclass(frozen=True)
class Silicon:
    """Facts that decide how fast a kernel can be here; where the system does not tell, text is "unknown"."""

    vendor: str
    model_name: str
    family: str
    model: str
    stepping: str
    flags: tuple[str, ...]
    caches: tuple[str, ...]
    usable_cpus: int
    memory_bytes: int
    gpus: tuple[str, ...]

    @property
    def instruction_set(self) -> str:
        """The widest vectors of the processor, or "none" where none are known."""
        return next((name for name in ("avx512f", "avx2", "sve", "asimd") if name in self.flags), "none")

    def distance(self, other: Silicon) -> float:
        """Return how far two machines are apart, by a rule of thumb that orders candidates: 0 for the same facts.

        The sum of: the share of instruction sets that only one has, times ISA_WEIGHT; the absolute log2 ratio of the
        usable CPUs; the mean absolute log2 ratio of caches of the same level; 1 each for another vendor, another model
        and other GPUs.
        """
        return (
            ISA_WEIGHT * _difference(frozenset(self.flags), frozenset(other.flags))
            + abs(math.log2(self.usable_cpus / other.usable_cpus))
            + _cache_distance(_cache_bytes(self), _cache_bytes(other))
            + (self.vendor != other.vendor)
            + ((self.family, self.model) != (other.family, other.model))
            + (self.gpus != other.gpus)
        )


@dataclass(frozen=True)
class Software:
    """Versions of the software that compiled and ran the kernels."""

    python: str
    torch: str
    compiler: str
    system: str
    scanlab: str


@dataclass(frozen=True)
class Machine:
    """Silicon and software of one machine."""

    silicon: Silicon
    software: Software

    @functools.cached_property
    def silicon_id(self) -> str:
        """SHA-256 (first 12 hex digits) over the silicon facts: results with another id are from another machine.

        Memory stays out: it differs by a few pages between two boots of one machine and decides no speed.
        """
        facts = asdict(self.silicon)
        del facts["memory_bytes"]
        return _digest(facts)

    @property
    def software_id(self) -> str:
        """SHA-256 (first 12 hex digits) over the software that decides speed: Python, torch and the compiler."""
        return _digest({name: getattr(self.software, name) for name in ("python", "torch", "compiler")})

    def describe(self) -> str:
        """Return one line for plots and tables."""
        silicon, software = self.silicon, self.software
        gpus = "".join(f", {name}" for name in silicon.gpus)
        cpus = f"{silicon.usable_cpus} usable CPU{'s' if silicon.usable_cpus > 1 else ''}"
        vector = "no SIMD known" if silicon.instruction_set == "none" else silicon.instruction_set
        runs = f"torch {software.torch}, Python {software.python}, {software.system}"
        return f"{silicon.model_name}, {cpus}, {vector}{gpus}; {runs}"

    def to_json(self) -> dict[str, Any]:
        """Return this machine as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Machine:
        """Return the machine that `to_json` wrote."""
        silicon: dict[str, Any] = dict(values["silicon"])
        for name in ("flags", "caches", "gpus"):
            silicon[name] = tuple(silicon[name])
        return cls(Silicon(**silicon), Software(**values["software"]))


@functools.cache
def this_machine() -> Machine:
    """Return the machine that this process runs on."""
    return Machine(_silicon(), _software())


def elsewhere(machine: Machine) -> str | None:
    """Return in what `machine` differs from this one, so that what was measured on it says nothing here, or None."""
    here = this_machine()
    if machine.silicon_id != here.silicon_id:
        return f"was measured on another machine: {machine.describe()}"
    if machine.software_id != here.software_id:
        return f"was measured with other software: {machine.describe()}"
    return None


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _silicon() -> Silicon:
    facts = _linux_cpu() or _sysctl_cpu()
    flags = set(facts.get("flags", facts.get("Features", "")).lower().split())
    return Silicon(
        vendor=facts.get("vendor_id", facts.get("CPU implementer", platform.machine())),
        model_name=facts.get("model name", platform.processor() or platform.machine()),
        family=facts.get("cpu family", facts.get("CPU architecture", "unknown")),
        model=facts.get("model", facts.get("CPU part", "unknown")),
        stepping=facts.get("stepping", facts.get("CPU revision", "unknown")),
        flags=tuple(name for name in KERNEL_FLAGS if name in flags),
        caches=_linux_caches(),
        usable_cpus=usable_threads(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0,
        gpus=tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())),
    )


def _software() -> Software:
    compiler = find_compiler()
    return Software(
        python=platform.python_version(),
        torch=str(torch.__version__),
        compiler="none" if compiler is None else compiler.version,
        system=f"{platform.system()} {platform.release()}",
        scanlab=importlib.metadata.version("scanlab"),
    )


def _linux_cpu() -> dict[str, str]:
    """Return the facts of the first processor in /proc/cpuinfo; empty if there is no such file."""
    try:
        text = CPUINFO.read_text()
    except OSError:
        return {}
    first = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in first}


def _linux_caches() -> tuple[str, ...]:
    caches = []
    for index in sorted(CACHES.glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        caches.append(f"L{level} {kind} {size}")
    return tuple(caches)


def _sysctl_cpu() -> dict[str, str]:
    """Return the facts of the processor on macOS, under the names of /proc/cpuinfo; empty on other systems."""
    names = {
        "machdep.cpu.vendor": "vendor_id",
        "machdep.cpu.brand_string": "model name",
        "machdep.cpu.family": "cpu family",
        "machdep.cpu.model": "model",
        "machdep.cpu.stepping": "stepping",
        "machdep.cpu.features": "flags",
    }
    if platform.system() != "Darwin":
        return {}
    # sysctl leaves out the names that a processor does not have and exits with an error, which is not a failure here.
    listing = subprocess.run(["sysctl", *names], capture_output=True, text=True, check=False).stdout
    found = (line.partition(":") for line in listing.splitlines())
    facts = {names[name]: value.strip() for name, _, value in found if name in names}
    if platform.machine() == "arm64":
        facts["flags"] = "asimd asimdhp asimddp"
    return facts


def _difference(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one ^ other) / max(1, len(one | other))


def _cache_distance(one: dict[str, int], other: dict[str, int]) -> float:
    levels = one.keys() | other.keys()
    distances = [
        abs(math.log2(one[level] / other[level])) if {level} <= one.keys() & other.keys() else 1 for level in levels
    ]
    return sum(distances) / max(1, len(distances))


def _cache_bytes(silicon: Silicon) -> dict[str, int]:
    """Return the bytes of every cache by its level and kind, read from text such as "L2 Unified 1024K"."""
    sizes = {}
    for text in silicon.caches:
        name, _, size = text.rpartition(" ")
        if size[:-1].isdigit() and size[-1] in CACHE_UNITS:
            sizes[name] = int(size[:-1]) << CACHE_UNITS[size[-1]]
    return sizes
