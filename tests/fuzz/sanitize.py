"""Build the C++ ops, kernels and torch glue, with AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

from scanlab.contract.compiler import find_compiler
from scanlab_kernels.build import Extension

# As little optimisation as fuses multiplications with additions, and calls instead of checks in place, which compile
# in half the time.
FLAGS = (
    *("-O1", "-g1", "-fexpensive-optimizations", "-fno-omit-frame-pointer"),
    *("-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined"),
    *("--param", "asan-instrumentation-with-call-threshold=0"),
)
RUNTIMES = ("libasan.so", "libubsan.so")


def environment() -> dict[str, str]:
    """Return the environment of a process that loads sanitized libraries into a Python that is not.

    Raises:
        SystemExit: There is no GCC with its sanitizers.
    """
    compiler = find_compiler()
    if compiler is None:
        raise SystemExit("there is no C++ compiler: `apt install g++`, or name one in CXX.")
    paths = []
    for name in RUNTIMES:
        words = (*compiler.command, f"-print-file-name={name}")
        path = Path(subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip())
        if not path.is_absolute():
            raise SystemExit(f"{name} is missing: the sanitizers come with GCC; name it in CXX.")
        paths.append(str(path.resolve()))
    return os.environ | {
        "LD_PRELOAD": " ".join(paths),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",  # Python keeps what it took, to its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def use_sanitized_libraries() -> None:
    """Let every extension of this process be built and loaded with the sanitizers; to be called before the first."""
    build = Extension.build

    def build_sanitized(extension: Extension) -> Path:
        units = tuple(
            replace(unit, flags=tuple(flag for flag in unit.flags if not flag.startswith("-O")))
            for unit in extension.units
        )
        flags = tuple(flag for flag in extension.flags if not flag.startswith("-O"))
        link_flags = (*extension.link_flags, "-fsanitize=address,undefined")
        return build(
            replace(
                extension,
                name=f"{extension.name}_sanitized",
                units=units,
                flags=(*flags, *FLAGS),
                link_flags=link_flags,
            )
        )

    Extension.build = build_sanitized  # type: ignore[assignment,method-assign]
