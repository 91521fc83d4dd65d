"""Build the tests of the native scan's C++ core, which knows no torch, and run them.

    cd tests/kernels/selective_scan/native_core
    python verify.py                    # as it is, then under every sanitizer
    python verify.py thread             # under one of: none, address, thread
    python verify.py none --step 1      # the functions over every float32, in minutes
    python verify.py --arch aarch64     # cross-compiled, on an emulated processor

Ends with status 1 where a test fails, a sanitizer finds something or a function exceeds its bound, and with status 3
where a compiler, a sanitizer or an emulator is missing, which it names.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from scanlab.contract.compiler import find_compiler
from scanlab.contract.cpu import usable_threads
from scanlab_kernels.build import PACKAGE, WARNINGS
from scanlab_kernels.cpu.isa import FAMILIES, INSTRUCTION_SETS, InstructionSet
from scanlab_kernels.selective_scan.native import backend as native

HERE = Path(__file__).parent
TESTS = ("scan_test", "math_test")
TYPES = ("float", "double")
MISSING = 3

# As little as makes GCC fuse multiplications with additions, which the bounds of the functions count on.
FUSED = ("-O1", "-fexpensive-optimizations")

# What a build is compiled with. `address` is AddressSanitizer and UndefinedBehaviorSanitizer; calls instead of
# checks in place compile in half the time. OpenMP stays out: ThreadSanitizer does not see what its threads wait for.
MODES = {
    "none": ("-O2",),
    "address": (
        *FUSED,
        *("-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
        *("--param", "asan-instrumentation-with-call-threshold=0"),
    ),
    "thread": (*FUSED, "-g1", "-fsanitize=thread"),
}

# The largest errors of the functions, in the measures of math_test.cpp: of 2^x relative ones; of softplus, its slope
# and sigmoid relative ones as a share of 1 + max(-x, 0), because exp(x) feels the last bit of x that often; of sine
# and cosine absolute ones.
BOUNDS = {
    **{f"exp_{name}": error for name, error in native.EXP_ERRORS.items()},
    "softplus": 3e-7,
    "softplus_slope": 2.1e-7,
    "sigmoid": 2e-7,
    "sine": 1e-7,
    "cosine": 1e-7,
    "exp_double": 3e-16,
    "softplus_double": 5e-16,
    "softplus_slope_double": 3e-16,
    "sigmoid_double": 3e-16,
    "sine_double": 3e-16,
    "cosine_double": 3e-16,
}


class MissingError(Exception):
    """Something that the verification needs is not on this machine."""


@dataclass(frozen=True)
class Target:
    """A processor to build for: its instruction sets and their flags, the compiler, and what runs its programs."""

    instruction_sets: tuple[InstructionSet, ...]
    compiler: tuple[str, ...]
    emulator: tuple[str, ...] = ()
    link_flags: tuple[str, ...] = ()


class Asked(NamedTuple):
    """The part of the core to verify: an instruction set and an arithmetic type, all of them where None."""

    only: str | None
    type: str | None


def here() -> Target:
    """Return this machine."""
    compiler = find_compiler()
    if compiler is None:
        raise MissingError("there is no C++ compiler: `apt install g++`, or name one in CXX.")
    return Target(INSTRUCTION_SETS, compiler.command)


def emulated(arch: str) -> Target:
    """Return another processor, out of Debian's cross compilers and qemu."""
    needs = {f"{arch}-linux-gnu-g++": f"g++-{arch}-linux-gnu", f"qemu-{arch}": "qemu-user"}
    for program, package in needs.items():
        if shutil.which(program) is None:
            raise MissingError(f"{program} is missing: `apt install {package}` on Debian and Ubuntu.")
    compiler, emulator = needs
    return Target(FAMILIES[arch], (compiler,), (emulator,), ("-static",))


def sources(target: Target, flags: tuple[str, ...], asked: Asked) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each object and what it is compiled from; instruction sets not asked for have no scan."""
    for isa in target.instruction_sets:
        is_taken = asked.only in (None, isa.name)
        words = [*(flags if is_taken else ("-O0",)), *isa.flags]
        yield f"functions_{isa.name}", [*words, str(HERE / "functions.cpp")]
        if is_taken:
            for real in TYPES:
                how = flags if asked.type in (None, real) else ("-O0",)
                kernels = str(native.FOLDER / "kernels.cpp")
                yield f"kernels_{isa.name}_{real}", [*how, *isa.flags, f"-DSCANLAB_TYPE={real}", kernels]
        else:
            yield f"left_out_{isa.name}", [*words, str(HERE / "left_out.cpp")]
    yield "native", [*flags, str(native.FOLDER / "scan.cpp")]
    # The tests themselves need no checks, which would cost most of the time.
    for name in ("scan_case", "plain_loop", *TESTS):
        yield name, ["-O1", str(HERE / f"{name}.cpp")]


def build(target: Target, mode: str, asked: Asked, folder: Path) -> None:
    """Compile and link scan_test and math_test into `folder`; raises CalledProcessError with the compiler's words."""
    flags = MODES[mode]
    common = (
        *target.compiler,
        "-std=c++20",
        *WARNINGS,
        "-Werror",
        *native.ARITHMETIC,
        "-pthread",
        f"-I{PACKAGE}",
        f"-I{HERE}",
    )
    named = list(sources(target, flags, asked))
    commands = [[*common, *words, "-c", "-o", str(folder / f"{name}.o")] for name, words in named]
    with ThreadPoolExecutor(usable_threads()) as pool:
        list(pool.map(_run, commands))
    shared = [str(folder / f"{name}.o") for name, _ in named if name not in TESTS]
    for test in TESTS:
        _run([*common, *flags, str(folder / f"{test}.o"), *shared, *target.link_flags, "-o", str(folder / test)])


def probe(target: Target, mode: str, folder: Path) -> None:
    """Raise MissingError unless a program of this mode compiles, links and runs here."""
    source, program = folder / "probe.cpp", folder / "probe"
    source.write_text("#include <thread>\nint main() { std::thread([] {}).join(); }\n")
    for command in (
        [*target.compiler, *MODES[mode], "-pthread", str(source), *target.link_flags, "-o", str(program)],
        [*target.emulator, str(program)],
    ):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise MissingError(
                f"a program of mode {mode!r} does not run here; sanitizers come with GCC and Clang as libasan,"
                f" libubsan and libtsan:\n{result.stderr[-2000:].strip()}"
            )


def verify(target: Target, mode: str, asked: Asked, cases: int, step: int) -> list[str]:
    """Return the faults of the core when built in this mode; print the output of its tests."""
    findings = []
    with tempfile.TemporaryDirectory(prefix=f"native-core-{mode}-") as name:
        folder = Path(name)
        probe(target, mode, folder)
        build(target, mode, asked, folder)
        scan = [str(cases), *([asked.only] if asked.only else [])]
        for test, words in zip(TESTS, (scan, [str(step)]), strict=True):
            result = subprocess.run(
                [*target.emulator, str(folder / test), *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | {"UBSAN_OPTIONS": "print_stacktrace=1"},
            )
            print(result.stdout, end="", flush=True)
            if result.returncode:
                findings.append(f"{test} ended with status {result.returncode} in mode {mode}")
            findings += _beyond_bounds(result.stdout)
            if test == "math_test" and not result.returncode:
                findings += [
                    f"nothing was said of {function}"
                    for function in BOUNDS
                    if f"error {function} " not in result.stdout
                ]
    return findings


def _beyond_bounds(output: str) -> list[str]:
    lines = [line.split() for line in output.splitlines() if line.startswith("error ")]
    return [
        f"{function} on {isa} is off by {error} at {at}: {BOUNDS[function]:.2g} is its bound"
        for _, function, isa, error, at in lines
        if not float(error) <= BOUNDS[function]
    ]


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def main() -> int:
    """Verify what the command line asks for, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", nargs="?", choices=list(MODES), help="all of them by default")
    parser.add_argument("--arch", choices=list(FAMILIES), help="build for another processor and emulate it")
    parser.add_argument("--only", metavar="ISA", help="check the scan on this instruction set alone")
    parser.add_argument("--type", choices=TYPES, help="compile the scan in the other type without sanitizers")
    parser.add_argument("--cases", type=int, default=200, help="random scans (default: 200)")
    parser.add_argument("--step", type=int, default=997, help="every how many float32 (default: 997)")
    asked = parser.parse_args()
    try:
        is_other = asked.arch not in (None, platform.machine())
        target = emulated(asked.arch) if is_other else here()
        if is_other and asked.mode not in (None, "none"):
            raise MissingError("sanitizers do not run on an emulated processor; leave them out.")
        findings = []
        for mode in [asked.mode] if asked.mode else ["none"] if is_other else MODES:
            print(f"{mode}: {', '.join(isa.name for isa in target.instruction_sets)}", flush=True)
            findings += verify(target, mode, Asked(asked.only, asked.type), asked.cases, asked.step)
    except MissingError as error:
        print(error, file=sys.stderr)
        return MISSING
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(error.cmd)}\n{error.stderr}", file=sys.stderr)
        return 1
    for finding in findings:
        print(finding, file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
