"""The C++ compiler of this machine, found in one place for the kernels, `compiled`, `doctor` and the records."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass

CURE = "install a C++20 compiler (on Debian and Ubuntu `apt install g++`) or name one in the environment variable CXX"


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler.

    Args:
        command: The words that run it, such as ("/usr/bin/ccache", "g++").
        version: The first line that it prints for `--version`.
    """

    command: tuple[str, ...]
    version: str


def find_compiler() -> Compiler | None:
    """Return the compiler that $CXX names, else the first of c++, g++ and clang++ on the path that runs.

    $CXX may hold several words, such as "ccache g++". Returns None if no compiler runs.
    """
    chosen = os.environ.get("CXX")
    for candidate in (chosen,) if chosen else ("c++", "g++", "clang++"):
        try:
            command = shlex.split(candidate)
        except ValueError:  # a quotation that is not closed
            continue
        path = shutil.which(command[0]) if command else None
        if path is not None and (compiler := _describe((path, *command[1:]))) is not None:
            return compiler
    return None


@functools.cache
def _describe(command: tuple[str, ...]) -> Compiler | None:
    try:
        answer = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    except (OSError, ValueError, subprocess.CalledProcessError):  # ValueError: it prints bytes that are not text
        return None
    return Compiler(command, answer.stdout.partition("\n")[0].strip())
