"""Records on disk: nothing is lost but what was in flight, and whatever is wrong is said."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from helpers.records import trial
from scanlab.bench import records as module
from scanlab.bench.records import encode
from scanlab.bench.store import TrialStore
from scanlab.errors import ResultsError


def test_what_is_appended_is_loaded_in_the_order_it_was_started(tmp_path):
    results = TrialStore(tmp_path / "new" / "folder")
    trials = [trial(started_at=float(second)) for second in (3, 1, 2)]
    for one in trials:
        results.append(one)
    loaded = TrialStore(results.folder).load()
    assert loaded.trials == tuple(sorted(trials, key=lambda one: one.started_at))
    assert loaded.notices == ()


def test_an_empty_or_missing_folder_holds_nothing(tmp_path):
    assert TrialStore(tmp_path / "missing").load() == ((), ())


def test_each_writer_has_a_file_of_its_own(tmp_path):
    for _ in range(2):
        TrialStore(tmp_path).append(trial())
    assert len(list((tmp_path / "trials").iterdir())) == 2
    assert len(TrialStore(tmp_path).load().trials) == 2


def test_a_forked_child_writes_to_a_file_of_its_own(tmp_path):
    results = TrialStore(tmp_path)
    results.append(trial())
    child = os.fork()
    if child == 0:
        results.append(trial())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    results.append(trial())
    assert sorted(len(path.read_bytes().splitlines()) for path in (tmp_path / "trials").iterdir()) == [1, 2]


def test_a_record_cut_off_at_any_byte_is_skipped_and_said(tmp_path):
    results = TrialStore(tmp_path)
    first, second = trial(), trial()
    results.append(first)
    (path,) = (tmp_path / "trials").iterdir()
    whole = path.read_bytes()
    line = encode(second)
    for size in (1, 19, 20, 21, len(line) // 2, len(line) - 2):
        path.write_bytes(whole + line[:size])
        loaded = TrialStore(tmp_path).load()
        assert loaded.trials == (first,)
        (notice,) = loaded.notices
        assert "unfinished record at the end" in notice
        assert path.name in notice


def test_a_record_that_lost_only_its_line_end_is_whole(tmp_path):
    results = TrialStore(tmp_path)
    results.append(trial())
    (path,) = (tmp_path / "trials").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert len(TrialStore(tmp_path).load().trials) == 1
    assert TrialStore(tmp_path).load().notices == ()


def test_a_damaged_line_costs_only_itself(tmp_path):
    results = TrialStore(tmp_path)
    trials = [trial(started_at=float(number)) for number in range(3)]
    for one in trials:
        results.append(one)
    (path,) = (tmp_path / "trials").iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b'"chunk":32', b'"chunk":64') + lines[2])
    loaded = TrialStore(tmp_path).load()
    assert loaded.trials == (trials[0], trials[2])
    (notice,) = loaded.notices
    assert "line 2" in notice


def test_records_of_a_newer_schema_are_kept_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SCHEMA", 99)
    future = encode(trial())
    monkeypatch.undo()
    results = TrialStore(tmp_path)
    own = trial()
    results.append(own)
    (path,) = (tmp_path / "trials").iterdir()
    path.write_bytes(future + path.read_bytes())
    loaded = TrialStore(tmp_path).load()
    assert loaded.trials == (own,)
    (notice,) = loaded.notices
    assert "1 records of a newer scanlab" in notice
    assert future in path.read_bytes()


def test_a_trial_that_is_recorded_twice_counts_once(tmp_path):
    one = trial()
    for _ in range(2):
        TrialStore(tmp_path).append(one)
    assert TrialStore(tmp_path).load().trials == (one,)


def test_a_folder_that_cannot_be_written_is_said_with_the_cure(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    for action in (TrialStore(blocked).prepare, lambda: TrialStore(blocked).append(trial())):
        with pytest.raises(ResultsError, match="cannot write results: .*--out"):
            action()


def test_a_full_disk_is_said_and_the_next_record_is_not_glued_to_the_torn_one(tmp_path, monkeypatch):
    results = TrialStore(tmp_path)
    first, torn, last = trial(started_at=1.0), trial(started_at=2.0), trial(started_at=3.0)
    results.append(first)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:100]))
    with pytest.raises(ResultsError, match="only 100 of .* bytes"):
        results.append(torn)

    def full(descriptor: int, line: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ResultsError, match="No space left on device"):
        results.append(torn)
    monkeypatch.undo()
    results.append(last)
    loaded = TrialStore(tmp_path).load()
    assert loaded.trials == (first, last)
    assert len(loaded.notices) == 1


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from helpers.records import trial
from scanlab.bench.store import TrialStore
results = TrialStore(sys.argv[2])
print("ready", flush=True)
while True:
    one = trial()
    results.append(one)
    print(one.id, flush=True)
"""


def test_sigkill_at_any_moment_loses_no_record_that_was_appended(tmp_path):
    rng = random.Random(5)
    said: set[str] = set()
    writers = []
    for number in range(3):
        log = (tmp_path / f"log{number}").open("w+")
        command = [sys.executable, "-c", WRITER, str(Path(__file__).parents[1]), str(tmp_path / "results")]
        writers.append((subprocess.Popen(command, stdout=log), log))
    for writer, log in writers:
        while "ready" not in Path(log.name).read_text():
            assert writer.poll() is None
            time.sleep(0.05)
    for writer, log in writers:
        time.sleep(rng.uniform(0.02, 0.3))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        said |= {line for line in Path(log.name).read_text().split("\n")[1:-1] if line}
        log.close()
    loaded = TrialStore(tmp_path / "results").load()
    assert said
    assert said <= {one.id for one in loaded.trials}
    assert len(loaded.notices) <= len(writers)


def test_an_odd_record_costs_only_itself(tmp_path):
    results = TrialStore(tmp_path)
    own = trial()
    results.append(own)
    record = json.loads(encode(trial()))
    del record["crc32"]
    record["trial"]["note"] = "a field that this version does not know"
    body = json.dumps(record, separators=(",", ":")).encode()[1:]
    (tmp_path / "trials" / "x.jsonl").write_bytes(b'{"crc32":"%08x",%s\n' % (zlib.crc32(body), body))
    loaded = TrialStore(tmp_path).load()
    assert loaded.trials == (own,)
    (notice,) = loaded.notices
    assert "x.jsonl: line 1" in notice
    assert "note" in notice


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to(path.name)])
def test_what_is_no_file_among_the_records_is_skipped_with_a_notice(tmp_path, make):
    store = TrialStore(tmp_path)
    store.append(trial())
    make(tmp_path / "trials" / "odd.jsonl")
    found = store.load()
    assert len(found.trials) == 1
    assert "odd.jsonl: skipped, because it is not a regular file" in found.notices[0]
