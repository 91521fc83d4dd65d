"""Storages are opened or refused with a sentence: no password, no file that was not meant."""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing

import pytest

from helpers.records import trial
from scanlab.contract import registry
from scanlab.errors import InputError, ResultsError, UnavailableError
from scanlab.tuning.fleet.overview import fleet_overview
from scanlab.tuning.fleet.storage import open_storage, storage_errors
from scanlab.tuning.fleet.trial_queue import TrialQueue


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("postgresql+nosuchdriver://someone:secret@localhost/name", r"someone:\*\*\*@localhost"),
        ("postgresql://scanlab:secret@127.0.0.1:1/name", "whose server answers"),
        ("postgresql://127.0.0.1:1/name?user=joe&password=secret", r"1/name\?\*\*\*"),
    ],
)
def test_a_storage_that_cannot_be_reached_is_reported_with_the_cure_and_without_the_password(
    tmp_path, monkeypatch, text, complaint
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("scanlab.tuning.fleet.storage.MAX_OPENINGS", 1)
    with pytest.raises(ResultsError, match=complaint) as refused:
        open_storage(text, tmp_path)
    assert "secret" not in str(refused.value)


def test_a_missing_driver_is_named_with_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UnavailableError, match=r"pip install 'scanlab\[fleet\]'"):
        open_storage("postgresql://someone@localhost/name", tmp_path)


@pytest.mark.parametrize("text", ["{}/studies", "sqlite:///{}/studies"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_is_refused_and_not_waited_for(tmp_path, text, make):
    make(tmp_path / "studies")
    with pytest.raises(InputError, match="this is|studies is"):
        open_storage(text.format(tmp_path), tmp_path)


@pytest.mark.parametrize("text", ["{}/my.journal", "sqlite:///{}/studies.db"])
def test_a_reader_creates_no_file(tmp_path, text):
    with pytest.raises(InputError, match="there is no such file"):
        open_storage(text.format(tmp_path), tmp_path, must_exist=True)
    assert list(tmp_path.iterdir()) == []
    open_storage(text.format(tmp_path), tmp_path)
    open_storage(text.format(tmp_path), tmp_path, must_exist=True)


def test_a_database_of_another_program_is_refused_and_stays_as_it_is(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE songs (x)")
        database.execute("CREATE TABLE studies (x)")  # a common word
    before = path.read_bytes()
    with pytest.raises(InputError, match="a database of another program, with the tables songs, studies"):
        open_storage(f"sqlite:///{path}", tmp_path)
    assert path.read_bytes() == before
    path.write_text("name,value\n" * 1000)
    before = path.read_bytes()
    with pytest.raises(InputError, match="cannot be read as an SQLite database"):
        open_storage(f"sqlite:///{path}", tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("my#data.db", "sqlite:///my#data.db"),
        ("a b.db", "sqlite:///a%20b.db"),
        ("a{b.db", "sqlite:///a{b.db"),
        ("other.db", "sqlite:///missing/../other.db"),
        ("other.db", "sqlite:///file:other.db?mode=rwc&uri=true"),
    ],
)
def test_a_database_of_another_program_is_refused_by_every_name(tmp_path, monkeypatch, file, text):
    monkeypatch.chdir(tmp_path)
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE songs (x)")
    before = (tmp_path / file).read_bytes()
    with pytest.raises(InputError, match="a database of another program|name the file itself"):
        open_storage(text, tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == [file]
    assert (tmp_path / file).read_bytes() == before


@pytest.mark.parametrize("file", ["my#data.db", "{a}b{{c.db"])
def test_a_database_is_created_in_the_file_that_was_named(tmp_path, file):
    open_storage(f"sqlite:///{tmp_path / file}", tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == [file]


def test_a_results_folder_may_have_any_name(tmp_path):
    folder = tmp_path / "joe:x@host"
    open_storage(None, folder)
    assert (folder / "studies.journal").exists()


def test_a_journal_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResultsError, match="Name a writable journal file"):
        open_storage(str(tmp_path / "file" / "my.journal"), tmp_path)


def test_a_full_disk_while_tuning_is_a_sentence():
    with pytest.raises(ResultsError, match="No space left on device.*Everything measured is in"), storage_errors():
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "damage",
    [
        "update trial_params set param_value = 99",
        "update trial_params set distribution_json = '{'",
        "update trials set datetime_start = 'yesterday'",
    ],
)
def test_a_study_that_no_optuna_wrote_costs_itself_alone(tmp_path, damage):
    measured = trial()
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    storage, _ = open_storage(url, tmp_path)
    facts = {"kind": "search", "problem": measured.problem.key, "machine": measured.machine.to_json()}
    tunables = registry.get(measured.backend).space.tunables
    TrialQueue(storage, "damaged", facts, tunables, carries_records=True).add(measured)
    with closing(sqlite3.connect(tmp_path / "studies.db")) as database:
        database.execute(damage)
        database.commit()
    storage, _ = open_storage(url, tmp_path)
    queue = TrialQueue(storage, "damaged", facts, tunables, carries_records=True)
    with pytest.raises(ResultsError, match="holds a trial that cannot be read"):
        queue.snapshot()
    TrialQueue(storage, "good", facts, tunables, carries_records=True).add(measured)
    overview = fleet_overview(storage)
    assert [each.id for each in overview.trials] == [measured.id]
    assert len(overview.notices) == 1
