"""The builder of C++ extensions: cached, safe with two processes at once, clear without a compiler."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from scanlab.contract.compiler import find_compiler
from scanlab.errors import UnavailableError
from scanlab_kernels.build import Extension, Unit, as_program


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


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        ("Cannot create temporary file in /tmp/: No space left on device", "Free space there, or set TMPDIR"),
        ("cc1plus: out of memory allocating 65536 bytes", "Free memory"),
        ("g++: fatal error: Killed signal terminated program cc1plus", "Free memory"),
        ("unrecognized command-line option -std=c++20", "may be too old"),
    ],
)
def test_a_compiler_that_fails_is_told_with_the_cure(
    extension: Extension, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, cure: str
) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *" -c "*) echo "{words}" >&2; exit 134;; esac\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(UnavailableError, match=cure):
        extension.load()


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


BUILD_SLOWLY = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from scanlab_kernels.build import Extension, Unit
folder = Path(sys.argv[1])
Extension("tiny", (Unit(folder / "quick.cpp"), Unit(folder / "tiny.cpp")), folder, flags=("-O1",)).build()
"""


@pytest.fixture
def slow_build(extension: Extension, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A program that builds two objects: the compiler is quick with one, and says in a pipe that the other takes long.

    The pipe is open for as long as that compiler lives, and holds another line if it comes to an end.
    """
    (tmp_path / "quick.cpp").write_text('extern "C" int quick() { return 1; }\n')
    os.mkfifo(tmp_path / "pipe")
    compiler = tmp_path / "slow c++"
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in *tiny.cpp*) exec 9>"$SLOW"; echo begin >&9; sleep 600; echo end >&9 ;; esac\n'
        'exec c++ "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{compiler}'")
    monkeypatch.setenv("SLOW", str(tmp_path / "pipe"))
    return [sys.executable, "-c", BUILD_SLOWLY, str(tmp_path)]


@pytest.mark.skipif(sys.platform != "linux", reason="the build ends its compilers by signals of Linux")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_compilers_end_with_their_parent_and_finished_objects_are_kept(
    slow_build: list[str], tmp_path: Path, how: signal.Signals
) -> None:
    objects = tmp_path / "cache" / "extensions"
    handle = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)  # without waiting for who writes
    os.set_blocking(handle, True)
    with open(handle) as pipe:
        process = subprocess.Popen(slow_build, stderr=subprocess.DEVNULL)
        for happened in (lambda: pipe.readline() == "begin\n", lambda: any(objects.glob("*.build/0.o"))):
            while not happened():
                assert process.poll() is None
                time.sleep(0.05)
        process.send_signal(how)
        process.wait()
        assert pipe.read() == ""  # waits until no compiler is left
    assert list(objects.glob("*.build/1.*")) == []
    assert list(objects.glob("*.so")) == []


def test_the_next_build_takes_the_objects_that_are_there(extension: Extension, tmp_path: Path) -> None:
    library = extension.build()
    assert list(library.parent.glob("*.build")) == []
    library.unlink()
    folder = library.with_suffix(".build")
    folder.mkdir()
    (tmp_path / "kept.cpp").write_text('extern "C" int kept_from_before() { return 3; }\n')
    subprocess.run(["c++", "-fPIC", "-c", tmp_path / "kept.cpp", "-o", folder / "0.o"], check=True)
    assert b"kept_from_before" in extension.build().read_bytes()


def test_objects_that_were_damaged_are_compiled_again(extension: Extension) -> None:
    library = extension.build()
    library.unlink()
    library.with_suffix(".build").mkdir()
    (library.with_suffix(".build") / "0.o").write_text("no object")
    assert b"factor" in extension.build().read_bytes()


@pytest.mark.parametrize("how", ["folder", "object", "link"])
def test_objects_that_others_could_have_planted_are_not_linked(
    extension: Extension, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    library = extension.build()
    library.unlink()
    folder = library.with_suffix(".build")
    planted = tmp_path / "planted"
    (planted if how == "link" else folder).mkdir()
    if how == "link":
        folder.symlink_to(planted)
    (folder / "0.o").write_bytes(b"planted")
    (folder / "0.o").chmod(0o666 if how == "object" else 0o644)
    folder.chmod(0o777 if how == "folder" else 0o700)
    extension.build()
    assert library.is_file()
    assert not folder.exists()
    assert (planted / "0.o").exists() == (how == "link"), "what a link names is left alone"


def test_a_library_that_was_cut_off_is_built_again(extension: Extension) -> None:
    library = extension.build()
    whole = library.read_bytes()
    library.write_bytes(whole[: len(whole) // 2])
    assert extension.build() == library
    assert len(library.read_bytes()) >= len(whole)
    library.with_suffix(".sha256").write_bytes(b"\xff" * 64)
    before = library.stat().st_ino
    assert extension.build().stat().st_ino != before


def test_what_old_builds_left_behind_is_swept(extension: Extension, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "extensions"
    for name in ("tiny-abc", "tiny-def.build", "other-abc"):
        (folder / name).mkdir(parents=True)
        os.utime(folder / name, (0, 0))
    (folder / "tiny-of-today").mkdir()
    extension.build()
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"other-abc", "tiny-of-today"}


def test_a_build_that_goes_on_is_not_swept_after_the_clock_was_set(extension: Extension, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "extensions" / "tiny-abc.build"
    folder.mkdir(parents=True)
    os.utime(folder, (0, 0))
    with FileLock(folder.with_suffix(".lock")):
        extension.build()
    assert folder.exists()


def test_the_cache_is_closed_to_others(extension: Extension) -> None:
    library = extension.build()
    assert library.parent.stat().st_mode & 0o777 == 0o700
    library.chmod(0o777)
    before = library.stat().st_ino
    assert extension.build().stat().st_ino != before


@pytest.mark.parametrize("folder", ["cache", "."])
def test_a_cache_that_others_can_replace_is_refused(extension: Extension, tmp_path: Path, folder: str) -> None:
    extension.build()
    (tmp_path / folder).chmod(0o777)
    with pytest.raises(UnavailableError, match="chmod go-w"):
        extension.build()


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() != 0, reason="only root gives files to another user")
@pytest.mark.parametrize("folder", ["cache", "."])
def test_a_cache_in_a_folder_of_another_user_is_refused(extension: Extension, tmp_path: Path, folder: str) -> None:
    extension.build()
    os.chown(tmp_path / folder, 1, 1)
    with pytest.raises(UnavailableError, match=r"its owner \(uid 1\).*SCANLAB_CACHE"):
        extension.build()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such rights")
@pytest.mark.parametrize("how", ["open to all", "of another user"])
def test_what_others_put_into_the_cache_before_it_was_closed_is_deleted(
    extension: Extension, tmp_path: Path, how: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    library = extension.build()
    library.unlink()
    library.with_suffix(".lock").unlink(missing_ok=True)
    library.with_suffix(".lock").symlink_to(victim)  # a lock empties what it opens
    if how == "open to all":
        library.parent.chmod(0o777)
    elif os.getuid() != 0:
        pytest.skip("only root gives files to another user")
    else:
        os.chown(library.with_suffix(".lock"), 1, 1, follow_symlinks=False)
    extension.build()
    assert victim.read_text() == "mine"
    assert not library.with_suffix(".lock").is_symlink()


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_a_library_is_built_once_whatever_the_umask(extension: Extension, umask: int) -> None:
    before = os.umask(umask)
    try:
        stamp = extension.build().stat().st_ino
        assert extension.build().stat().st_ino == stamp
    finally:
        os.umask(before)


def test_a_link_to_the_cache_is_resolved_before_the_library_is_checked(
    extension: Extension, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    monkeypatch.setenv("SCANLAB_CACHE", str(tmp_path / "link"))
    assert extension.build().is_relative_to((tmp_path / "cache").resolve())


def test_a_compiler_of_several_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCANLAB_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "env g++")
    compiler = find_compiler()
    assert compiler is not None
    program = as_program(compiler)
    assert Path(program).name == "g++"
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    assert answer.startswith(compiler.version)


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
    extension.units[0].source.unlink()
    assert extension.unavailable() is None, "a loaded library needs its sources no more"
