"""Compile C++ sources that register torch ops into a library, once on each machine, and load it.

A wheel may bring the library, which is then loaded as it is (`shipped`). Elsewhere it is cached under the hash of
everything that decides its content: sources, headers, flags and the compiler, and the torch version where the sources
do not keep to LibTorch's stable ABI. Two processes that build the same library at once end with one library: the second
waits for the first. Finished objects of an interrupted build are kept for the next one, and no compiler outlives the
process that started it. A library is loaded only if its digest is right and only this user and root could have
written it. Nothing is downloaded and no Python headers are needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from scanlab import settings
from scanlab.contract.compiler import CURE, Compiler, find_compiler
from scanlab.contract.cpu import usable_threads
from scanlab.contract.files import own_folder, sync
from scanlab.errors import UnavailableError
from scanlab_kernels import shipped
from scanlab_kernels.integrity import (
    digest,
    digest_file,
    discard_unless_private,
    forbid_others_to_write,
    is_intact,
    make_private,
)

PACKAGE = Path(__file__).parent
TORCH = Path(torch.__file__).parent
# Vectors cross no boundary of a library, so that their ABI does not matter; in its headers for AVX-512 GCC 12 warns of
# variables that are undefined on purpose.
WARNINGS = ("-Wall", "-Wextra", "-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized")
THREADING = ("-fopenmp",) if sys.platform == "linux" else ("-pthread",)
STALE_S = 24 * 3600.0  # the age at which the folder of an interrupted build is deleted

# Runs a compiler and, where the end of the pipe on standard input tells that the caller is gone, kills its group.
SUPERVISOR = """
exec 3<&0
"$@" </dev/null 3<&- &
compiler=$!
{ read -r _ <&3; kill -KILL 0; } &
watcher=$!
wait $compiler
status=$?
kill -KILL $watcher
exit $status
"""


_loaded: set[Extension] = set()
_loading = threading.RLock()
if hasattr(os, "register_at_fork"):  # a fork waits until no thread is loading, which its child could not finish
    os.register_at_fork(before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_loading.release)


def cache_folder() -> Path:
    """Return the folder of built libraries: $SCANLAB_CACHE, or the user's cache folder on this system.

    Symbolic links are resolved.
    """
    chosen = settings.CACHE.get()
    return Path(os.path.realpath(chosen or own_folder("cache")))


def headers(folder: Path) -> tuple[Path, ...]:
    """Return every C++ header below `folder`, in a fixed order."""
    return tuple(sorted(folder.rglob("*.h")))


@dataclass(frozen=True)
class Unit:
    """Run of the compiler.

    Args:
        source: The file to compile.
        flags: The flags of this run, beside those of the extension.
    """

    source: Path
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Extension:
    """A library of torch ops.

    Args:
        name: The name in messages and of the file.
        units: The runs of the compiler whose objects are linked.
        include: The folder below which headers are found; a change to any header there rebuilds the library.
        flags: Flags of every run and of the linker.
        link_flags: Flags of the linker alone.
        register: Called once the library is loaded; registers the Python part of its ops.
        stable_abi: Whether the sources keep to LibTorch's stable ABI, so that the library serves every version of torch
            and a wheel can bring it.
    """

    name: str
    units: tuple[Unit, ...]
    include: Path = PACKAGE
    flags: tuple[str, ...] = ("-O3",)
    link_flags: tuple[str, ...] = ()
    register: Callable[[], None] = field(default=lambda: None, compare=False)
    stable_abi: bool = False

    def unavailable(self) -> str | None:
        """Return why this library is neither cached nor can be compiled here, or None; compiles nothing."""
        if self in _loaded:  # asked at every new problem, so no file is read
            return None
        if sys.platform == "win32":
            return (
                f"{self.name} is not built on Windows: torch is made with MSVC there, which lacks the vector types that"
                " the sources are written in; run scanlab in WSL."
            )
        library, damage = self._shipped()
        if library is None and find_compiler() is None and self._cached_by_any_compiler() is None:
            named = os.environ.get("CXX")
            what = f"CXX={named!r} does not run" if named else "there is no C++ compiler"
            return f"{what} and no compiled {self.name} in {cache_folder()}{f' ({damage})' if damage else ''}; {CURE}."
        return None

    def build(self) -> Path:
        """Return the path of the library: the shipped one, or a compiled one, compiled now where the cache lacks it.

        Raises:
            UnavailableError: There is no compiler, compiling fails, or the cache cannot be written or be trusted.
        """
        library, damage = self._shipped()
        if library is not None:
            return library
        if damage is not None:
            print(f"scanlab: {damage}.", file=sys.stderr, flush=True)
        return self._build_from_sources()

    def load(self) -> None:
        """Build the library if need be and register its ops with torch, once in a process.

        Raises:
            UnavailableError: It can neither be loaded nor be compiled.
        """
        with _loading:
            if self in _loaded:
                return
            library = self.build()
            try:
                torch.ops.load_library(str(library))
            except OSError as error:
                if library != self._shipped()[0]:
                    raise UnavailableError(f"{library} cannot be loaded: {error}") from error
                print(f"scanlab: {library} cannot be loaded here: {error}.", file=sys.stderr, flush=True)
                torch.ops.load_library(str(self._build_from_sources()))
            self.register()
            _loaded.add(self)

    def source_hash(self) -> str:
        """Return the hash of everything that the library depends on, except compiler and torch."""
        found = hashlib.sha256()
        for text in (platform.machine(), *self.flags, *self.link_flags):
            found.update(text.encode() + b"\0")
        for unit in self.units:
            found.update("\0".join((unit.source.name, *unit.flags)).encode() + b"\0" + unit.source.read_bytes())
        for header in headers(self.include):
            found.update(str(header.relative_to(self.include)).encode() + b"\0" + header.read_bytes())
        return found.hexdigest()[:16]

    def compile_into(self, folder: Path, compiler: Compiler, torch_libraries: Path = TORCH / "lib") -> Path:
        """Compile and link in `folder`, and return the library; objects that are there already are kept.

        Args:
            folder: An existing folder.
            compiler: The compiler of the sources, for this machine or another one.
            torch_libraries: Folder of the libraries of torch, for the linker.

        Raises:
            UnavailableError: Compiling fails.
        """
        include = TORCH / "include"
        common = (
            *("-std=c++20", "-fPIC"),
            *("-I", str(self.include)),
            *("-isystem", str(include), "-isystem", str(include / "torch/csrc/api/include")),
        )
        commands = {
            folder / f"{index}.o": (*compiler.command, *common, *self.flags, *unit.flags, "-c", str(unit.source))
            for index, unit in enumerate(self.units)
        }
        _run_all(self.name, {target: command for target, command in commands.items() if not target.exists()})
        link_flags = [*self.flags, *self.link_flags]
        libraries = ["-ltorch_cpu"] if self.stable_abi else ["-ltorch", "-ltorch_cpu", "-lc10"]
        if self.stable_abi and "clang" not in compiler.version:
            # The runtime of OpenMP is the one that torch has loaded: its file has other names in other builds of torch,
            # and the system's own would be a second one in the process.
            link_flags = ["-pthread", *(flag for flag in link_flags if flag != "-fopenmp")]
        linked = folder / f"{self.name}.so"
        objects = map(str, commands)
        words = (*compiler.command, "-shared", *objects, *link_flags, "-L", str(torch_libraries), *libraries)
        _run_all(self.name, {linked: words})
        return linked

    def _shipped(self) -> tuple[Path | None, str | None]:
        return shipped.find(self.name, self.source_hash()) if self.stable_abi else (None, None)

    def _build_from_sources(self) -> Path:
        compiler = None if sys.platform == "win32" else find_compiler()
        if compiler is None:
            cached = self._cached_by_any_compiler()
            if cached is None:
                raise UnavailableError(f"{self.name} cannot be compiled: {self.unavailable()}")
            return cached
        library = self._folder() / f"{self._cached_name()}-{_hash(*compiler.command, compiler.version)}.so"
        try:
            make_private(library.parent)
            if is_intact(library):
                return library
            with _locked(library.with_suffix(".lock"), self.name):
                if not is_intact(library):
                    self._compile(compiler, library)
        except OSError as error:
            raise UnavailableError(
                f"{self.name} cannot be compiled into {library.parent}: {error}."
                " Make it writable, or name another folder in the environment variable SCANLAB_CACHE."
            ) from error
        return library

    def _folder(self) -> Path:
        return cache_folder() / "extensions"

    def _cached_name(self) -> str:
        """Return the name of a cached library, without the compiler."""
        content = self.source_hash() if self.stable_abi else _hash(self.source_hash(), torch.__version__)
        return f"{self.name}-{content}"

    def _cached_by_any_compiler(self) -> Path | None:
        found = self._folder().glob(f"{self._cached_name()}-*.so")
        return next((library for library in found if is_intact(library)), None)

    def _compile(self, compiler: Compiler, library: Path) -> None:
        print(
            f"scanlab: compiling {self.name} (once on this machine) with {compiler.version}",
            file=sys.stderr,
            flush=True,
        )
        self._sweep(library)
        folder = library.with_suffix(".build")
        discard_unless_private(folder)  # its objects are linked, and run as this user
        folder.mkdir(mode=0o700, exist_ok=True)
        kept = list(folder.glob("*.o"))
        try:
            linked = self.compile_into(folder, compiler)
        except UnavailableError:
            if not kept:
                raise
            for path in kept:  # of an interrupted build, and perhaps damaged since
                path.unlink()
            linked = self.compile_into(folder, compiler)
        digest_file(library).write_text(digest(linked) + "\n")
        for file in (linked, digest_file(library)):
            forbid_others_to_write(file)
        sync(digest_file(library))
        os.replace(linked, library)
        sync(library.parent)
        shutil.rmtree(folder)

    def _sweep(self, library: Path) -> None:
        """Delete the leftovers of interrupted builds of this extension, except those of `library`."""
        for folder in library.parent.glob(f"{self.name}-*/"):
            is_own = folder == library.with_suffix(".build")
            if not is_own and time.time() - folder.stat().st_mtime > STALE_S and not _is_held(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _cure(errors: str) -> str:
    """Return the cure for a compiler that failed with these words."""
    if re.search("no space left|disk quota|file too large", errors, re.IGNORECASE):
        return "Free space there, or set TMPDIR (for temporary files) or SCANLAB_CACHE to a folder that has some."
    if re.search("cannot allocate|memory exhausted|out of memory|killed", errors, re.IGNORECASE):
        return "Free memory, or raise the limit on it (ulimit -v)."
    return f"The compiler may be too old: {CURE}."


def _run_all(name: str, commands: dict[Path, tuple[str, ...]]) -> None:
    """Run the commands side by side, each of which writes one file; a file appears when it is complete.

    Raises:
        UnavailableError: One command fails; the others are stopped.
    """
    running: list[subprocess.Popen[str]] = []

    def run(target: Path, command: Sequence[str]) -> None:
        partial = target.with_suffix(".partial")
        words = (*command, "-o", str(partial))
        process = subprocess.Popen(
            ("/bin/sh", "-c", SUPERVISOR, "sh", *words),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        running.append(process)
        assert process.stderr is not None
        errors = process.stderr.read()
        if process.wait():
            raise UnavailableError(
                f"{name} does not compile here; {shlex.join(words)} ended with status {process.returncode}:\n"
                f"{errors[-4000:].strip()}\n{_cure(errors)}"
            )
        sync(partial)
        os.replace(partial, target)

    with ThreadPoolExecutor(usable_threads()) as pool:
        futures = [pool.submit(run, target, command) for target, command in commands.items()]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                assert process.stdin is not None
                process.stdin.close()  # the supervisor of a running command kills it


def private_folder(name: str) -> Path:
    """Return the folder `name` of the cache, made where it is missing; only this user and root can write to it.

    Raises:
        UnavailableError: It cannot be made, or others can write to it.
    """
    folder = cache_folder() / name
    try:
        make_private(folder)
    except OSError as error:
        raise UnavailableError(
            f"{folder} cannot be made: {error}. Make the folder above it writable, or name another in the environment"
            " variable SCANLAB_CACHE."
        ) from error
    return folder


def as_program(compiler: Compiler) -> str:
    """Return one path that runs the compiler, for callers that take no command of several words."""
    if len(compiler.command) == 1:
        return compiler.command[0]
    words = shlex.join(compiler.command)
    name = Path(next(word for word in reversed(compiler.command) if not word.startswith("-"))).name
    folder = private_folder("compilers") / _hash(words)
    folder.mkdir(mode=0o700, exist_ok=True)
    partial = folder / f"{name}.{os.getpid()}"
    partial.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    partial.chmod(0o700)
    os.replace(partial, folder / name)
    return str(folder / name)


def _is_held(folder: Path) -> bool:
    """Return whether a process builds in a folder, however old the folder seems since the clock was set."""
    path = folder.with_suffix(".lock")
    try:
        if path.exists():
            FileLock(path).acquire(blocking=False).lock.release()
    except Timeout:
        return True
    return False


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
