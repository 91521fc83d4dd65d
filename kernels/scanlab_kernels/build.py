"""Compile C++ sources that register torch ops into a library, once on each machine, and load it.

A library is cached under the hash of everything that decides its content: sources, headers, flags, the torch version
and the compiler. Two processes that build the same library at once end with one library: the second waits for the
first. Finished objects of an interrupted build are kept for the next one, and no compiler outlives the process that
started it. A library is loaded only where its digest is right and nobody but this user and root could have written it.
Nothing is downloaded and no Python headers are needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs
import torch
from filelock import FileLock, Timeout

from scanlab import settings
from scanlab.contract.compiler import CURE, Compiler, find_compiler
from scanlab.contract.cpu import usable_threads
from scanlab.errors import UnavailableError

PACKAGE = Path(__file__).parent
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


def cache_folder() -> Path:
    """Return the folder of built libraries: $SCANLAB_CACHE, or the user's cache folder on this system."""
    chosen = settings.CACHE.get()
    return Path(chosen) if chosen else platformdirs.user_cache_path("scanlab")


def headers(folder: Path) -> tuple[Path, ...]:
    """Return every C++ header below `folder`, in a fixed order."""
    return tuple(sorted(folder.rglob("*.h")))


@dataclass(frozen=True)
class Unit:
    """One run of the compiler.

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
        register: Called once the library is loaded, to register what its ops have in Python.
    """

    name: str
    units: tuple[Unit, ...]
    include: Path = PACKAGE
    flags: tuple[str, ...] = ("-O3",)
    link_flags: tuple[str, ...] = ()
    register: Callable[[], None] = field(default=lambda: None, compare=False)

    def unavailable(self) -> str | None:
        """Return why this library is neither cached nor can be compiled here, or None; compiles nothing."""
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
        """Return the path of the compiled library, compiled now where the cache lacks it.

        Raises:
            UnavailableError: There is no compiler, compiling fails, or the cache cannot be written or be trusted.
        """
        compiler = None if sys.platform == "win32" else find_compiler()
        if compiler is None:
            cached = self._cached_by_any_compiler()
            if cached is None:
                raise UnavailableError(f"{self.name} cannot be compiled: {self.unavailable()}")
            return cached
        digest = hashlib.sha256("\0".join((*compiler.command, compiler.version)).encode()).hexdigest()[:16]
        library = self._folder() / f"{self.name}-{self._content_hash()}-{digest}.so"
        try:
            _make_private(library.parent)
            if _is_intact(library):
                return library
            with _locked(library.with_suffix(".lock"), self.name):
                if not _is_intact(library):
                    self._compile(compiler, library)
        except OSError as error:
            raise UnavailableError(
                f"{self.name} cannot be compiled into {library.parent}: {error}."
                " Make it writable, or name another folder in the environment variable SCANLAB_CACHE."
            ) from error
        return library

    def load(self) -> None:
        """Build the library if need be and register its ops with torch, once in a process."""
        with _loading:
            if self not in _loaded:
                torch.ops.load_library(str(self.build()))
                self.register()
                _loaded.add(self)

    def _folder(self) -> Path:
        return cache_folder() / "extensions"

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
        found = self._folder().glob(f"{self.name}-{self._content_hash()}-*.so")
        return next((library for library in found if _is_intact(library)), None)

    def _compile(self, compiler: Compiler, library: Path) -> None:
        print(
            f"scanlab: compiling {self.name} (once on this machine) with {compiler.version}",
            file=sys.stderr,
            flush=True,
        )
        self._sweep(library)
        torch_folder = Path(torch.__file__).parent
        include = torch_folder / "include"
        common = (
            *("-std=c++20", "-fPIC"),
            *("-I", str(self.include)),
            *("-isystem", str(include), "-isystem", str(include / "torch/csrc/api/include")),
        )
        folder = library.with_suffix(".build")
        folder.mkdir(mode=0o700, exist_ok=True)
        commands = {
            folder / f"{index}.o": (*compiler.command, *common, *self.flags, *unit.flags, "-c", str(unit.source))
            for index, unit in enumerate(self.units)
        }
        _run_all(self.name, {target: command for target, command in commands.items() if not target.exists()})
        libraries = ("-L", str(torch_folder / "lib"), "-ltorch", "-ltorch_cpu", "-lc10")
        objects = tuple(map(str, commands))
        linked = folder / library.name
        _run_all(
            self.name,
            {linked: (*compiler.command, "-shared", *objects, *self.flags, *self.link_flags, *libraries)},
        )
        _digest_file(library).write_text(_digest(linked) + "\n")
        _sync(_digest_file(library))
        os.replace(linked, library)
        _sync(library.parent)
        shutil.rmtree(folder)

    def _sweep(self, library: Path) -> None:
        """Delete what interrupted builds of this extension left behind, but for that of `library`."""
        for folder in library.parent.glob(f"{self.name}-*/"):
            is_own = folder == library.with_suffix(".build")
            if not is_own and time.time() - folder.stat().st_mtime > STALE_S:
                shutil.rmtree(folder, ignore_errors=True)


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
                f"{errors[-4000:].strip()}\nThe compiler may be too old: {CURE}."
            )
        _sync(partial)
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
                process.stdin.close()  # whatever still runs is killed by its supervisor


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_file(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _is_intact(library: Path) -> bool:
    """Return whether the library is there, whole, and written by nobody but this user and root."""
    digest = _digest_file(library)
    files = (library, digest)
    if not all(file.exists() for file in files):
        return False
    is_private = all(map(_is_private, (*files, library.parent, library.parent.parent)))
    return is_private and digest.read_text().strip() == _digest(library)


def _is_private(path: Path) -> bool:
    """Return whether `path` belongs to this user or root and nobody else can write to it or replace what is in it."""
    status = path.stat()
    others_write = bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    is_sticky = stat.S_ISDIR(status.st_mode) and bool(status.st_mode & stat.S_ISVTX)
    return status.st_uid in (0, os.getuid()) and (is_sticky or not others_write)


def _make_private(folder: Path) -> None:
    """Make the folder, and close it and the user's own cache folder above it to others.

    Raises:
        UnavailableError: Others can write to it or to the folder that $SCANLAB_CACHE names.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (folder,) if settings.CACHE.get() else (folder, folder.parent):
        if path.stat().st_uid == os.getuid():
            path.chmod(0o700)
    for path in (folder, folder.parent):
        if not _is_private(path):
            raise UnavailableError(
                f"others than you can write to {path}, and what they put there would run as you: make it yours with"
                f" `chmod go-w {path}`, or name another folder in the environment variable SCANLAB_CACHE."
            )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def as_program(compiler: Compiler) -> str:
    """Return one path that runs the compiler, for callers that take no command of several words."""
    if len(compiler.command) == 1:
        return compiler.command[0]
    words = shlex.join(compiler.command)
    name = Path(next(word for word in reversed(compiler.command) if not word.startswith("-"))).name
    folder = cache_folder() / "compilers" / hashlib.sha256(words.encode()).hexdigest()[:16]
    _make_private(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    partial = folder / f"{name}.{os.getpid()}"
    partial.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    partial.chmod(0o700)
    os.replace(partial, folder / name)
    return str(folder / name)


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
