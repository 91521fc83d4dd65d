"""Work on threads: a caller whose threads are held up by other processes works alone for a while."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from scanlab.contract.compiler import find_compiler
from scanlab_kernels.build import PACKAGE


def test_a_caller_whose_threads_are_held_up_works_alone_for_a_while(tmp_path: Path) -> None:
    compiler, program = find_compiler(), tmp_path / "contention"
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    source = Path(__file__).with_name("contention.cpp")
    flags = ["-std=c++20", "-fopenmp", f"-I{PACKAGE}"]
    subprocess.run([*compiler.command, *flags, str(source), "-o", str(program)], check=True)
    ended = subprocess.run([str(program)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
