"""Compiles C++ sources that register torch ops into a library, once for each machine, and loads it.

The library is cached under the hash of everything that decides its content: sources, headers, flags, the
torch version and the compiler. Two processes that build the same library at once end with one library:
the second waits for the first. Nothing is downloaded and no Python headers are needed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import torch
from filelock import FileLock, Timeout

from scanlab.contract.cpu import usable_threads
from scanlab.errors import UnavailableError

PACKAGE = Path(__file__).parent
CURE = "install a C++20 compiler (on Debian and Ubuntu `apt install g++`) or name one in the environment variable CXX"


def cache_folder() -> Path:
    """Where built libraries are kept: $SCANLAB_CACHE, or the user's cache folder on this system."""
    chosen = os.environ.get("SCANLAB_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("scanlab")


def headers(folder: Path) -> tuple[Path, ...]:
    """Return every C++ header below `folder`, in a fixed order."""
    return tuple(sorted(folder.rglob("*.h")))


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: the command that runs it, and what it says about its version."""

    command: tuple[str, ...]
    version: str


def find_compiler() -> Compiler | None:
    """The compiler $CXX names, else the first of c++, g++ and clang++ on the path; None where none runs."""
    chosen = os.environ.get("CXX")
    for candidate in (chosen,) if chosen else ("c++", "g++", "clang++"):
        command = shlex.split(candidate)
        path = shutil.which(command[0]) if command else None
        if path is not None:
            return _describe((path, *command[1:]))
    return None


@functools.cache
def _describe(command: tuple[str, ...]) -> Compiler | None:
    try:
        answer = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return Compiler(command, answer.stdout.partition("\n")[0].strip())


@dataclass(frozen=True)
class Unit:
    """One run of the compiler: a source and the flags that only this run gets."""

    source: Path
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Extension:
    """A library of torch ops to be built from `units`; every unit is compiled with `flags` as well.

    The units include headers by their paths below `include`; a change to any header there rebuilds the library.
    """

    name: str
    units: tuple[Unit, ...]
    include: Path = PACKAGE
    flags: tuple[str, ...] = ("-O3",)
    link_flags: tuple[str, ...] = ()

    def unavailable(self) -> str | None:
        """Why this library can neither be found in the cache nor be compiled here, or None; compiles nothing."""
        if sys.platform == "win32":
            return (
                f"{self.name} is not built on Windows: torch is made with MSVC there, which lacks the vector types that"
                " the sources are written in; run scanlab in WSL."
            )
        if find_compiler() is None and self._cached_by_any_compiler() is None:
            named = os.environ.get("CXX")
            what = f"CXX={named!r} does not run" if named else "there is no C++ compiler"
            return f"{what} and no compiled {self.name} in {cache_folder()}; {CURE}."
        return None

    def build(self) -> Path:
        """The path of the compiled library, compiled now where the cache lacks it.

        Raises UnavailableError where there is no compiler, where the cache cannot be written, and where
        compiling fails.
        """
        compiler = None if sys.platform == "win32" else find_compiler()
        if compiler is None:
            cached = self._cached_by_any_compiler()
            if cached is None:
                raise UnavailableError(f"{self.name} cannot be compiled: {self.unavailable()}")
            return cached
        digest = hashlib.sha256("\0".join((*compiler.command, compiler.version)).encode()).hexdigest()[:16]
        library = cache_folder() / "extensions" / f"{self.name}-{self._content_hash()}-{digest}.so"
        if library.exists():
            return library
        try:
            library.parent.mkdir(parents=True, exist_ok=True)
            with _locked(library.with_suffix(".lock"), self.name):
                if not library.exists():
                    self._compile(compiler, library)
        except OSError as error:
            raise UnavailableError(
                f"{self.name} cannot be compiled into {library.parent}: {error}."
                " Make it writable, or name another folder in the environment variable SCANLAB_CACHE."
            ) from error
        return library

    def load(self) -> None:
        """Build the library if need be and register its ops with torch; once in a process."""
        _load(str(self.build()))

    def _content_hash(self) -> str:
        digest = hashlib.sha256()
        for text in (torch.__version__, platform.machine(), *self.flags, *self.link_flags):
            digest.update(text.encode() + b"\0")
        for unit in self.units:
            digest.update("\0".join((unit.source.name, *unit.flags)).encode() + b"\0" + unit.source.read_bytes())
        for header in headers(self.include):
            digest.update(str(header.relative_to(self.include)).encode() + b"\0" + header.read_bytes())
        return digest.hexdigest()[:16]

    def _cached_by_any_compiler(self) -> Path | None:
        return next((cache_folder() / "extensions").glob(f"{self.name}-{self._content_hash()}-*.so"), None)

    def _compile(self, compiler: Compiler, library: Path) -> None:
        print(
            f"scanlab: compiling {self.name} (once on this machine) with {compiler.version}",
            file=sys.stderr,
            flush=True,
        )
        torch_folder = Path(torch.__file__).parent
        include = torch_folder / "include"
        common = (
            *("-std=c++20", "-fPIC"),
            *("-I", str(self.include)),
            *("-isystem", str(include), "-isystem", str(include / "torch/csrc/api/include")),
        )
        with tempfile.TemporaryDirectory(prefix=f"{self.name}-", dir=library.parent) as folder:
            commands, objects = [], []
            for index, unit in enumerate(self.units):
                target = f"{folder}/{index}.o"
                commands.append(
                    (*compiler.command, *common, *self.flags, *unit.flags, "-c", str(unit.source), "-o", target)
                )
                objects.append(target)
            with ThreadPoolExecutor(usable_threads()) as pool:
                list(pool.map(self._run, commands))
            linked = f"{folder}/{library.name}"
            libraries = ("-L", str(torch_folder / "lib"), "-ltorch", "-ltorch_cpu", "-lc10")
            self._run((*compiler.command, "-shared", *objects, "-o", linked, *self.flags, *self.link_flags, *libraries))
            os.replace(linked, library)

    def _run(self, command: Sequence[str]) -> None:
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise UnavailableError(
                f"{self.name} does not compile here; {shlex.join(command)} ended with status {result.returncode}:\n"
                f"{result.stderr[-4000:].strip()}\nThe compiler may be too old: {CURE}."
            )


@functools.cache
def _load(library: str) -> None:
    torch.ops.load_library(library)


@contextlib.contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"scanlab: waiting for another process that is compiling {name}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
