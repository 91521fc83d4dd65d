"""GPU kernels through Triton's own launcher, with a driver that runs nothing in the place of NVIDIA's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

LAUNCHED = Path(__file__).parent / "launched"


def test_every_kernel_is_launched_with_its_arguments(tmp_path):
    pytest.importorskip("triton.backends.nvidia.driver", reason="the package triton is not installed")
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        pytest.skip("Triton writes launchers in C: a compiler or the headers of Python are missing")
    library = tmp_path / "libcuda.so.1"
    build = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", library, LAUNCHED / "libcuda.c"]
    subprocess.run(build, check=True)
    library.with_name("libcuda.so").symlink_to(library.name)  # by which Triton before 3.6 links it
    command = [sys.executable, str(LAUNCHED / "verify.py"), str(tmp_path)]
    environment = os.environ | {"TRITON_LIBCUDA_PATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
