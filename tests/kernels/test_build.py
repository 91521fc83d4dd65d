"""The builder of C++ extensions: cached, safe with two processes at once, clear without a compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scanlab.errors import UnavailableError
from scanlab_kernels.build import Extension, Unit, find_compiler


@pytest.fixture
def extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Extension:
    """A tiny extension of one source and one header, with a cache of its own."""
    monkeypatch.setenv("SCANLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.cpp").write_text('#include "factor.h"\nextern "C" int factor() { return FACTOR; }\n')
    (tmp_path / "factor.h").write_text("#define FACTOR 3\n")
    return Extension("tiny", (Unit(tmp_path / "tiny.cpp"),), tmp_path, flags=("-O1",))


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine whose path holds no compiler."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def test_builds_once_and_says_so(extension: Extension, capfd: pytest.CaptureFixture[str]) -> None:
    library = extension.build()
    assert "compiling tiny" in capfd.readouterr().err
    stamp = library.stat().st_mtime_ns
    assert extension.build() == library
    assert library.stat().st_mtime_ns == stamp
    assert capfd.readouterr().err == ""


def test_whatever_decides_the_content_decides_the_name(extension: Extension) -> None:
    before = extension.build()
    (extension.include / "factor.h").write_text("#define FACTOR 4\n")
    after = extension.build()
    flagged = Extension("tiny", extension.units, extension.include, flags=("-O0",)).build()
    assert len({before, after, flagged}) == 3


def test_a_cached_library_serves_without_a_compiler(extension: Extension, request: pytest.FixtureRequest) -> None:
    library = extension.build()
    request.getfixturevalue("no_compiler")
    assert extension.unavailable() is None
    assert extension.build() == library


@pytest.mark.usefixtures("no_compiler")
def test_without_compiler_and_cache_the_reason_and_the_cure(extension: Extension) -> None:
    assert find_compiler() is None
    reason = extension.unavailable()
    assert reason is not None
    assert "there is no C++ compiler" in reason
    assert "apt install g++" in reason
    with pytest.raises(UnavailableError, match="there is no C\\+\\+ compiler"):
        extension.build()


def test_a_compiler_that_does_not_run_is_named(extension: Extension, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    assert "CXX='no-such-compiler -m64' does not run" in str(extension.unavailable())


def test_on_windows_the_reason_and_the_cure(extension: Extension, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UnavailableError, match="not built on Windows.*WSL"):
        extension.build()


def test_a_source_that_does_not_compile_shows_the_compilers_words(extension: Extension) -> None:
    extension.units[0].source.write_text("this is no C++;\n")
    with pytest.raises(UnavailableError, match=r"tiny\.cpp"):
        extension.build()
    assert list((extension.units[0].source.parent / "cache" / "extensions").glob("*.so")) == []


def test_two_processes_at_once_compile_once(extension: Extension, tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from scanlab_kernels.build import Extension, Unit;"
        f"folder = Path({str(tmp_path)!r});"
        "print(Extension('tiny', (Unit(folder / 'tiny.cpp'),), folder, flags=('-O1',)).build())"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len({out for out, _ in answers}) == 1
    assert sum("scanlab: compiling tiny" in err for _, err in answers) == 1


def test_an_unwritable_cache_names_the_cure(
    extension: Extension, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SCANLAB_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UnavailableError, match="SCANLAB_CACHE"):
        extension.build()


def test_loading_registers_ops_with_torch(extension: Extension) -> None:
    extension.units[0].source.write_text(
        "#include <ATen/core/Tensor.h>\n#include <torch/library.h>\n"
        "at::Tensor same(const at::Tensor& x) { return x.clone(); }\n"
        'TORCH_LIBRARY(scanlab_tiny, m) { m.def("same(Tensor x) -> Tensor", &same); }\n'
    )
    extension.load()
    x = torch.randn(3)
    assert torch.equal(torch.ops.scanlab_tiny.same(x), x)
