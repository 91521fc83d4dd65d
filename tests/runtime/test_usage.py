"""A usage log holds every scan of a dispatcher while it runs; its file survives what programs do."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from scanlab.contract.problem import ScanProblem, make_inputs
from scanlab.errors import InputError
from scanlab.runtime.dispatch import Dispatcher
from scanlab.runtime.usage import Usage, UsageFile, UsageLog, log_usage

SMALL = ScanProblem(batch=1, dim=4, length=5, state=3)
LARGE = SMALL.replace(length=50)


def test_every_scan_in_the_block_is_noted_by_problem():
    serve = Dispatcher("reference:threads=1")
    serve(*make_inputs(SMALL))
    with log_usage() as outer:
        serve(*make_inputs(SMALL))
        with log_usage() as inner:
            for _ in range(2):
                serve(*make_inputs(LARGE))
    serve(*make_inputs(SMALL))
    assert {problem: usage.calls for problem, usage in outer.usage.items()} == {SMALL: 1, LARGE: 2}
    assert list(inner.usage) == [LARGE]
    assert inner.usage[LARGE].seconds > 0


def test_the_one_that_takes_longest_stands_first():
    made = UsageLog()
    made.add(SMALL, 0.1)
    made.add(LARGE, 0.3)
    made.add(SMALL, 0.1)
    assert made.usage == {LARGE: Usage(1, 0.3), SMALL: Usage(2, 0.2)}
    assert list(made.usage) == [LARGE, SMALL]


def test_scans_of_other_threads_are_noted_too():
    serve = Dispatcher("reference:threads=1")
    with log_usage() as made:
        threads = [threading.Thread(target=serve, args=make_inputs(SMALL)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert made.usage[SMALL].calls == 4


def test_the_file_is_resolved_before_the_program_changes_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = UsageFile(Path("usage.toml"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file.write("problems")
    assert (tmp_path / "usage.toml").read_text() == "problems"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["elsewhere", "usage.toml"]


def test_a_fork_of_the_program_writes_nothing(tmp_path):
    file = UsageFile(tmp_path / "usage.toml")
    child = os.fork()
    if child == 0:
        file.write("of the child")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert not file.path.exists()
    file.write("of the parent \U0001f600")
    assert file.path.read_text(encoding="utf-8") == "of the parent \U0001f600"


def test_without_usage_an_earlier_file_stays(tmp_path):
    (tmp_path / "usage.toml").write_text("earlier")
    UsageFile(tmp_path / "usage.toml").write("")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("usage.toml", "earlier")]


@pytest.mark.parametrize("name", ["missing/usage.toml", "file/usage.toml", ".", "x" * 300, "a\0b"])
def test_a_file_that_cannot_be_written_is_refused_before_the_program_runs(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Name a file in"):
        UsageFile(tmp_path / name)


def test_what_is_no_regular_file_is_refused_and_stays(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        UsageFile(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_that_became_a_file_is_reported(tmp_path):
    (tmp_path / "folder").mkdir()
    file = UsageFile(tmp_path / "folder" / "usage.toml")
    shutil.rmtree(tmp_path / "folder")
    (tmp_path / "folder").touch()
    file.save(lambda: "problems", is_new=True)  # the program goes on
    with pytest.raises(InputError, match="the usage could not be written"):
        file.write("problems")


def test_the_file_is_written_at_each_new_problem_and_otherwise_seldom(tmp_path):
    file, texts = UsageFile(tmp_path / "usage.toml"), iter("abcdef")
    for is_new in (True, True, False, False):
        file.save(lambda: next(texts), is_new)
    assert file.path.read_text() == "b"
    with log_usage(lambda log, is_new: file.save(lambda: f"{len(log.usage)} problems", is_new)) as log:
        log.add(SMALL, 0.1)
        log.add(LARGE, 0.1)
    assert file.path.read_text() == "2 problems"


def test_a_fork_adds_nothing():
    log = UsageLog()
    child = os.fork()
    if child == 0:
        log.add(SMALL, 0.1)
        os._exit(len(log.usage))
    assert os.waitpid(child, 0)[1] == 0
