"""The storage of studies: whatever a crash left of it, it opens, says what it repaired, and loses nothing whole."""

from __future__ import annotations

import json
import subprocess
import sys

import optuna
import pytest

from helpers.fakes import TINY, fake
from helpers.records import trial
from scanlab.bench.prove import Setting, prove
from scanlab.bench.store import TrialStore
from scanlab.contract import registry
from scanlab.contract.problem import make_inputs
from scanlab.contract.space import Tunable
from scanlab.errors import ResultsError
from scanlab.tuning.fleet.storage import open_storage
from scanlab.tuning.search import Search


def filled(folder):
    """The journal of a study with three trials, and its lines."""
    storage, _ = open_storage(None, folder)
    study = optuna.create_study(study_name="s", storage=storage)
    for value in range(3):
        study.add_trial(optuna.trial.create_trial(value=float(value)))
    path = folder / "studies.journal"
    return path, path.read_bytes().splitlines(keepends=True)


def values(folder):
    storage, notices = open_storage(None, folder)
    study = optuna.load_study(study_name="s", storage=storage)
    return [each.value for each in study.trials], notices


def test_a_whole_journal_opens_silently(tmp_path):
    filled(tmp_path)
    assert values(tmp_path) == ([0.0, 1.0, 2.0], ())


@pytest.mark.parametrize("kept", [1, 10, -2])
def test_a_torn_tail_is_cut_off_and_copied_aside_and_the_next_record_survives(tmp_path, kept):
    path, lines = filled(tmp_path)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:kept])
    found, notices = values(tmp_path)
    assert found == [0.0, 1.0]
    (notice,) = notices
    assert "unfinished last line" in notice
    (aside,) = tmp_path.glob("studies.journal.damaged-*")
    assert aside.read_bytes() == lines[-1][:kept]
    storage, _ = open_storage(None, tmp_path)
    optuna.load_study(study_name="s", storage=storage).add_trial(optuna.trial.create_trial(value=9.0))
    assert values(tmp_path) == ([0.0, 1.0, 9.0], ())


def test_without_the_repair_optuna_loses_the_next_record_and_then_everything(tmp_path):
    """The fault that the repair is for; when this fails, the repair may go."""
    path, lines = filled(tmp_path)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:10])
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    for number in (8, 9):
        backend.append_logs([{"number": number}])
    with pytest.raises(json.JSONDecodeError):
        list(backend.read_logs(0))


def test_damage_further_up_moves_the_journal_aside(tmp_path):
    path, lines = filled(tmp_path)
    path.write_bytes(lines[0] + b"\x00garbage\n" + b"".join(lines[1:]))
    storage, notices = open_storage(None, tmp_path)
    assert storage.get_all_studies() == []
    assert "rebuilt from the records" in notices[0]
    (aside,) = tmp_path.glob("studies.journal.damaged-*")
    assert b"garbage" in aside.read_bytes()


def test_a_database_url_and_a_path_are_storages_too(tmp_path):
    for text in (f"sqlite:///{tmp_path}/studies.db", str(tmp_path / "elsewhere" / "my.journal")):
        storage, _ = open_storage(text, tmp_path)
        optuna.create_study(study_name="s", storage=storage)
        again, _ = open_storage(text, tmp_path)
        assert [each.study_name for each in again.get_all_studies()] == ["s"]


@pytest.mark.parametrize("text", ["sqlite:////nosuchfolder/studies.db"])
def test_a_storage_that_cannot_be_opened_is_said_with_the_cure(tmp_path, text):
    with pytest.raises(ResultsError, match="Name a writable journal file, or a database URL"):
        open_storage(text, tmp_path)


def test_a_search_on_a_database_takes_up_from_the_records(tmp_path):
    setting = Setting.of(TINY, make_inputs(TINY), "made", seed=0)
    anchor = prove(registry.get("reference"), {"threads": 1}, setting)
    backend = fake("pair", lambda scan, config: scan, (Tunable("a", (0, 1), 1), Tunable("b", ("x", "y"), "y")))
    url = f"sqlite:///{tmp_path}/studies.db"
    asked = []
    search = Search(backend, setting, anchor, [], open_storage(url, tmp_path)[0], TrialStore(tmp_path))
    while (config := search.ask(available_s=60.0)) is not None:
        asked.append(config)
        failure = trial(backend="pair", config=config, state="crashed", measurement=None, verdict=None, reason="boom")
        search.tell(failure, None)
    assert asked[0] == {"a": 1, "b": "y"}
    assert sorted(map(str, asked)) == sorted(map(str, backend.space.configs(TINY)))
    assert search.best is None


def test_asking_and_giving_back_asks_for_the_same_again(tmp_path):
    setting = Setting.of(TINY, make_inputs(TINY), "made", seed=0)
    anchor = prove(registry.get("reference"), {"threads": 1}, setting)
    backend = fake("one", lambda scan, config: scan, (Tunable("a", tuple(range(6)), 3),))
    search = Search(backend, setting, anchor, [], open_storage(None, tmp_path)[0], TrialStore(tmp_path))
    first = search.ask(60.0)
    search.give_back(first)
    assert search.ask(60.0) == first == {"a": 3}


def test_importing_the_lab_below_the_study_does_not_load_optuna():

    code = "import sys, scanlab.bench.compare, scanlab.bench.records; sys.exit('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
