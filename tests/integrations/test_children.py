"""Python processes started below `scanlab run`: they have the drop-in and the mapping of CUDA."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scanlab.integrations.children import in_children

STARTS = """
import importlib.metadata, multiprocessing, subprocess, sys

def version(queue):
    queue.put(importlib.metadata.version("mamba_ssm"))  # found without importing torch

if __name__ == "__main__":
    for method in ("spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        child = context.Process(target=version, args=(queue,))
        child.start()
        print(method, queue.get(timeout=60), flush=True)
        child.join()
    code = "import importlib.metadata; print('subprocess', importlib.metadata.version('mamba_ssm'))"
    subprocess.run([sys.executable, "-c", code], check=True)
"""


def python(*arguments: str, **variables: str) -> str:
    environment = os.environ | variables
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_children_of_every_kind_have_the_drop_in(tmp_path):
    (tmp_path / "script.py").write_text(STARTS)
    with in_children(cpu=False):
        lines = python(str(tmp_path / "script.py")).splitlines()
    assert [line.split()[0] for line in lines] == ["spawn", "forkserver", "subprocess"]
    assert all(line.endswith("+scanlab") for line in lines)


def test_a_child_imports_torch_only_where_it_needs_it():
    with in_children(cpu=True):
        assert python("-c", "import sys; print('torch' in sys.modules)") == "False\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA itself serves here")
def test_a_child_maps_cuda_to_the_cpu_without_a_word():
    program = "import importlib.util as u; u.find_spec('torch'); import torch; x = torch.ones(2, device='cuda')\n"
    program += "print(x.device, x.cuda().device, torch.__spec__.name)"
    with in_children(cpu=True):
        assert python("-c", program) == "cpu cpu torch\n"


def test_a_sitecustomize_of_the_user_runs_too(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.customised = True")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with in_children(cpu=False):
        assert python("-c", "import sitecustomize; print(customised, sitecustomize.__file__)") == (
            f"True {tmp_path / 'sitecustomize.py'}\n"
        )
    assert os.environ["PYTHONPATH"] == str(tmp_path)


def test_an_interpreter_without_scanlab_starts_as_it_does(tmp_path, monkeypatch):
    """`-S` leaves out site-packages, and sitecustomize is then imported by hand."""
    monkeypatch.chdir(tmp_path)
    with in_children(cpu=False):
        assert python("-S", "-c", "import sitecustomize, sys; print('scanlab' in sys.modules)") == "False\n"


def test_nothing_is_left_in_the_environment(monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    before = dict(os.environ)
    with in_children(cpu=True):
        assert Path(os.environ["PYTHONPATH"], "sitecustomize.py").exists()
    assert dict(os.environ) == before
