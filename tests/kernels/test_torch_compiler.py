"""Compilation by torch: a missing compiler or header is named, and the cache is closed to other users."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from scanlab.contract.problem import ScanProblem
from scanlab.errors import UnavailableError
from scanlab_kernels import torch_compiler
from scanlab_kernels.selective_scan import compiled

PROBLEM = ScanProblem(batch=2, dim=6, length=11, state=3)


def test_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(torch_compiler, "find_compiler", lambda: None)
    with pytest.raises(UnavailableError, match="no C\\+\\+ compiler.*install"):
        compiled.backend.build(PROBLEM)
    monkeypatch.undo()
    if torch_compiler.find_compiler() is None:
        pytest.skip("there is no C++ compiler")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UnavailableError, match=r"Python\.h is missing.*install"):
        compiled.backend.build(PROBLEM)


def test_keeps_torchs_code_where_no_other_user_writes(monkeypatch, tmp_path):
    monkeypatch.setenv("SCANLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(torch_compiler.TORCH_CACHE, raising=False)
    with torch_compiler.private_cache():
        folder = Path(os.environ[torch_compiler.TORCH_CACHE])
        assert folder.is_relative_to(tmp_path)
        assert folder.stat().st_mode & 0o777 == 0o700
    assert torch_compiler.TORCH_CACHE not in os.environ
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(UnavailableError, match="chmod go-w"), torch_compiler.private_cache():
        pass
    monkeypatch.setenv(torch_compiler.TORCH_CACHE, str(tmp_path))
    with torch_compiler.private_cache():
        assert os.environ[torch_compiler.TORCH_CACHE] == str(tmp_path)


def test_takes_nothing_from_torchs_folder_for_all_users(tmp_path):
    """In a process of its own: torch fixes the place of that folder when its compiler is imported."""
    if torch_compiler.unavailable() is not None:
        pytest.skip("nothing can be compiled here")
    program = (
        "import torch; from scanlab_kernels.torch_compiler import compile_function;"
        "compile_function(lambda x: (x + 1,), (torch.ones(3),), 1)"
    )
    variables = {name: value for name, value in os.environ.items() if name != torch_compiler.TORCH_CACHE}
    subprocess.run([sys.executable, "-c", program], env=variables | {"TMPDIR": str(tmp_path)}, check=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_default_that_torch_writes_into_the_environment_is_no_choice_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("SCANLAB_CACHE", str(tmp_path.resolve() / "cache"))
    monkeypatch.setenv(torch_compiler.TORCH_CACHE, default_cache_dir())
    with torch_compiler.private_cache():
        assert Path(os.environ[torch_compiler.TORCH_CACHE]).is_relative_to(tmp_path.resolve())
    assert os.environ[torch_compiler.TORCH_CACHE] == default_cache_dir()


def test_a_library_that_the_loader_refuses_is_removed_and_compiled_again(monkeypatch, tmp_path):
    monkeypatch.setenv("SCANLAB_CACHE", str(tmp_path.resolve() / "cache"))
    monkeypatch.delenv(torch_compiler.TORCH_CACHE, raising=False)
    damaged = tmp_path.resolve() / "cache" / "torch" / "a" / "b.main.so"

    def compile_graph(graph, examples, options):
        if not damaged.parent.exists():
            damaged.parent.mkdir(parents=True)
            damaged.touch()
        if damaged.exists():
            raise RuntimeError(f"ImportError: {damaged}: file too short")
        return graph

    monkeypatch.setattr("torch._inductor.compile", compile_graph)
    kernel = torch_compiler.compile_function(lambda x: (x + 1,), (torch.ones(3),), 1)
    assert torch.equal(kernel(torch.ones(3))[0], torch.full((3,), 2.0))
