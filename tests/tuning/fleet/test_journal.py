"""A journal survives crashes and damage, and a file of another program is never touched."""

from __future__ import annotations

import errno
import json
import os
import random
import sqlite3
import threading

import optuna
import pytest

from scanlab.errors import InputError
from scanlab.tuning.fleet.journal import open_journal


@pytest.fixture
def path(tmp_path):
    return tmp_path / "studies.journal"


def names(storage):
    return [study.study_name for study in storage.get_all_studies()]


def fill(path, *studies):
    storage, notices = open_journal(path, is_ours=False)
    for name in studies:
        study = optuna.create_study(study_name=name, storage=storage)
        study.add_trial(optuna.trial.create_trial(value=1.0, user_attrs={"record": "0123"}))
    return storage, notices


def test_a_new_journal_is_created_with_its_folder(tmp_path):
    path = tmp_path / "new" / "my.journal"
    fill(path, "one")
    assert names(open_journal(path, is_ours=False)[0]) == ["one"]


def test_an_empty_file_may_become_a_journal(path):
    path.touch()
    assert fill(path, "one")[1] == ()


@pytest.mark.parametrize("size", [1, 5, 11, 40])
def test_an_unfinished_line_is_cut_off_and_kept_aside(path, size):
    fill(path, "one")
    whole = path.read_bytes()
    torn = whole.splitlines(keepends=True)[0][:size]
    for before in (whole, b""):
        path.write_bytes(before + torn)
        storage, (notice,) = open_journal(path, is_ours=not before)
        assert f"{size} bytes of an unfinished last line moved to" in notice
        (aside,) = path.parent.glob("*.damaged-*")
        assert aside.read_bytes() == torn
        aside.unlink()
        assert names(storage) == (["one"] if before else [])


def test_a_journal_that_is_damaged_further_up_is_moved_aside_whole(path):
    fill(path, "one", "two")
    damaged = path.read_bytes().replace(b'"two"', b'"tw\xff')
    path.write_bytes(damaged)
    storage, (notice,) = open_journal(path, is_ours=False)
    assert "the studies are rebuilt from the records" in notice
    assert names(storage) == []
    (aside,) = path.parent.glob("*.damaged-*")
    assert aside.read_bytes() == damaged


def test_an_unfinished_line_of_a_damaged_journal_is_kept_beside_it(path):
    fill(path, "one", "two")
    damaged = path.read_bytes().replace(b'"two"', b'"tw\xff')
    for times in (1, 2):
        path.write_bytes(damaged + b'{"op_code":0,"wor')
        _, notices = open_journal(path, is_ours=False)
        kept = [each.read_bytes() for each in path.parent.glob("*.damaged-*")]
        assert len(notices) == 2
        assert sorted(kept) == sorted([damaged, b'{"op_code":0,"wor'] * times)


def test_a_journal_whose_last_line_cannot_be_kept_is_not_cut(path, monkeypatch):
    fill(path, "one")
    torn = path.read_bytes() + b'{"op_code":0,"wor'
    path.write_bytes(torn)

    def full(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        open_journal(path, is_ours=False)
    assert path.read_bytes() == torn


def test_a_journal_with_any_changed_byte_opens(path):
    fill(path, "one", "two")
    whole = path.read_bytes()
    rng = random.Random(7)
    for position in rng.sample(range(len(whole)), 150):
        changed = bytearray(whole)
        changed[position] = rng.choice(b'0123456789aZ"{}[],:\n')
        path.write_bytes(bytes(changed))
        storage, _ = open_journal(path, is_ours=True)
        optuna.create_study(study_name="three", storage=storage, load_if_exists=True)
        assert "three" in names(open_journal(path, is_ours=True)[0])


def test_a_line_that_is_json_and_makes_no_sense_costs_only_the_journal(path):
    fill(path, "one")
    for odd in (b'{"op_code":99}', b'{"op_code":4,"worker_id":"w","study_id":7}', b"[]", b"7", b"[" * 10_000):
        whole = path.read_bytes()
        path.write_bytes(whole + odd + b"\n")
        storage, notices = open_journal(path, is_ours=False)
        if notices:
            assert "rebuilt from the records" in notices[0]
            path.write_bytes(whole)
        else:
            assert names(storage) == ["one"]


def contents(folder):
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}


FOREIGN = (
    b"name,value\nimportant,1\n",
    *(b"\n", b"{", b"{}\n", b'{"op":1}\n', b"\x00" * 100, b'{"op_codes":1}\n', b'{"op_code":1}\n'),
    b'{"op_code":1,"ID":2}',
)


@pytest.mark.parametrize("content", FOREIGN)
def test_a_file_of_another_program_is_refused_and_stays_as_it_is(path, content):
    path.write_bytes(content)
    before = contents(path.parent)
    with pytest.raises(InputError, match=r"is not a journal of studies and was left as it is.*sqlite:///FILE"):
        open_journal(path, is_ours=False)
    assert contents(path.parent) == before, "no lock, no copy"


@pytest.mark.parametrize("content", [b"name,value\nimportant,1\nlast", b"\n", b'{"op":1}\n', b"SQLite format 3\0..."])
@pytest.mark.parametrize("linked", [False, True])
def test_a_file_of_another_program_under_our_name_stays_as_it_is(tmp_path, path, content, linked):
    if linked:
        (tmp_path / "notes.csv").write_bytes(content)
        path.symlink_to("notes.csv")
    else:
        path.write_bytes(content)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="is not a journal of studies and was left as it is. Move it away"):
        open_journal(path, is_ours=True)
    assert contents(tmp_path) == before
    assert path.is_symlink() == linked


def test_a_database_is_refused_with_the_url_that_was_probably_meant(path):
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE t (x)")
    before = contents(path.parent)
    with pytest.raises(InputError, match=f"you probably mean sqlite:///{path}"):
        open_journal(path, is_ours=False)
    assert contents(path.parent) == before


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, complaint in (
        ("pipe", "not a regular file"),
        (".", r"a folder; name a file, such as .*studies\.journal"),
    ):
        with pytest.raises(InputError, match=complaint):
            open_journal(tmp_path / name, is_ours=False)


def test_a_full_disk_leaves_no_half_line(path, monkeypatch):
    storage, _ = fill(path, "one")
    whole = path.read_bytes()

    def full(descriptor):
        os.truncate(path, len(whole) + 20)  # what fitted
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        optuna.create_study(study_name="two", storage=storage)
    monkeypatch.undo()
    assert path.read_bytes() == whole
    optuna.create_study(study_name="three", storage=storage)
    assert names(open_journal(path, is_ours=False)[0]) == ["one", "three"]


def test_what_a_killed_neighbour_left_does_not_swallow_the_next_line(path):
    storage, _ = fill(path, "one")
    with path.open("ab") as file:
        file.write(b'{"op_code":0,"worker')
    optuna.create_study(study_name="two", storage=storage)
    assert [json.loads(line)["op_code"] for line in path.read_bytes().splitlines()]
    assert names(open_journal(path, is_ours=False)[0]) == ["one", "two"]


def test_threads_of_one_process_share_a_journal(path):
    storage, _ = fill(path, "one")
    (trial,) = storage.get_all_trials(0)
    own = storage.create_new_trial(0)

    def beat(number):
        for step in range(20):
            storage.set_trial_user_attr(own, f"beat{number}", step)

    threads = [threading.Thread(target=beat, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert storage.get_trial(own).user_attrs == {f"beat{number}": 19 for number in range(4)}
    assert trial.value == 1.0
