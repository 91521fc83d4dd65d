"""Standard streams that are closed, full, without letters, or whose reader is gone; too little memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from scanlab.cli.console import QuietConsole

SCANLAB = f"{sys.executable} -m scanlab"


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of bash, which fails with the first program of a pipe that fails."""
    words = ["bash", "-o", "pipefail", "-c", command]
    return subprocess.run(words, env=os.environ | environment, capture_output=True, text=True)


def test_a_reader_that_has_seen_enough_is_no_fault() -> None:
    for words in ("--help", "--version"):
        done = shell(f"{SCANLAB} {words} | exec true")
        assert (done.returncode, done.stderr) == (0, "")


def test_a_command_goes_on_where_its_reader_is_gone() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as file:
        console = QuietConsole(file=file)
        for _ in range(2):
            console.print("a table")


def test_a_full_disk_is_told_in_a_sentence() -> None:
    done = shell(f"{SCANLAB} --help > /dev/full")
    assert done.returncode == 3
    assert done.stderr == "error: [Errno 28] No space left on device\n"


def test_a_letter_that_the_terminal_lacks_is_escaped() -> None:
    done = shell(f"{SCANLAB} straße", PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert "stra\\xdfe" in done.stderr


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
def test_no_file_takes_the_number_of_a_closed_stream(tmp_path) -> None:
    program = (
        "import os; from scanlab.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: open('opened', 'w').write(str(os.open(os.devnull, os.O_RDONLY)))\n"
    )
    (tmp_path / "program.py").write_text(program)
    done = shell(f"cd {tmp_path}; {sys.executable} program.py <&- >&- 2>&-")
    assert done.returncode == 0
    assert int((tmp_path / "opened").read_text()) > 2


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 3 TB"),
        RuntimeError("can't start new thread"),
        RuntimeError("std::bad_alloc"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
def test_memory_that_does_not_suffice_is_told_in_a_sentence(run, monkeypatch, error) -> None:
    def fail(name):
        raise error

    monkeypatch.setattr("scanlab.cli.app.load_command", fail)
    outcome = run("list")
    assert outcome.code == 3
    assert "the memory does not suffice: make the problem" in outcome.err
