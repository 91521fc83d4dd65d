"""`scanlab fleet`: what it shows of the machines, and what this machine takes over from them."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from helpers.simulated import tune_simulated
from scanlab.contract import machine as machine_module
from scanlab.runtime.profile import Profile, profile_path

PROBLEM = "batch=1,dim=6,length=20,state=4"
URL = "sqlite:///studies.db"
TUNE = ("tune", "--problem", PROBLEM, "--backends", "two_phase", "--trials", "3", "--storage", URL)


@pytest.fixture
def elsewhere(monkeypatch):
    """Makes this machine take itself for one of another kind, or for itself again."""
    here = machine_module.this_machine()

    def become(model=None):
        other = here if model is None else replace(here, silicon=replace(here.silicon, model_name=model))
        for module in ("cli.fleet", "cli.report", "runtime.profile", "bench.context"):
            monkeypatch.setattr(f"scanlab.{module}.this_machine", lambda: other)
        return other

    return become


def two_phase_first(candidate):
    return 1.0 if candidate.backend.name == "two_phase" else 3.0


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    monkeypatch.setattr("scanlab.cli.tune_problems.tune_problem", partial(tune_simulated, time_ms=two_phase_first))
    monkeypatch.setattr("scanlab.cli.tune_problems.SWEEP_S", 0.1)
    monkeypatch.setattr("scanlab.cli.finished.write", lambda *_: [])


def test_a_machine_that_nobody_tuned_takes_over_the_choice_of_its_kin_which_is_marked(run, elsewhere):
    abacus = elsewhere("an abacus")
    assert run(*TUNE, "--out", "abacus").code == 0
    shown = run("fleet", "--storage", URL).out
    for text in (abacus.silicon_id, "an abacus", "two_phase", "which backend wins where"):
        assert text in shown
    here = elsewhere()
    found = run("fleet", "--storage", URL, "--adopt", "--json").json
    (machine,) = found["machines"]
    assert (machine["workers"], machine["working"]) == (1, 0)
    assert found["wins"] == {found["best"][0]["trial"]["problem"]: {abacus.silicon_id: "two_phase"}}
    (entry,) = Profile.load(profile_path()).entries
    assert entry.adopted_from == abacus.describe()
    assert entry.evidence["trial"] == found["best"][0]["trial"]
    best = run("best", "--problem", PROBLEM, "--json").json[0]
    assert (best["backend"], best["config"], best["basis"]) == ("two_phase", dict(entry.config), "adopted")
    assert "nearest machine, an abacus" in best["reason"]
    assert run(*TUNE, "--out", "here").code == 0
    assert run("best", "--problem", PROBLEM, "--json").json[0]["basis"] == "exact"
    again = run("fleet", "--storage", URL, "--adopt", "--json").json
    assert again["adopted"] == [], "what was tuned here must not be overwritten"
    assert {each["silicon_id"] for each in again["machines"]} == {abacus.silicon_id, here.silicon_id}


def test_a_machine_of_a_kind_that_was_tuned_takes_over_its_choice_as_its_own(run, elsewhere):
    elsewhere()
    assert run(*TUNE, "--out", "one").code == 0
    profile_path().unlink()
    assert run("fleet", "--storage", URL, "--adopt").code == 0
    assert run("best", "--problem", PROBLEM, "--json").json[0]["basis"] == "exact"


def test_a_mistyped_storage_is_refused_and_not_created(run):
    for storage in (URL, "my.journal"):
        outcome = run("fleet", "--storage", storage)
        assert (outcome.code, "there is no such file" in outcome.err) == (2, True)
    assert not Path("studies.db").exists()


def test_a_storage_that_nobody_used_is_reported(run):
    Path("empty.journal").touch()
    outcome = run("fleet", "--storage", "empty.journal")
    assert outcome.code == 3
    assert "no machine has tuned with this storage yet" in outcome.err


def test_a_journal_without_records_says_where_they_are(run):
    here = TUNE[: TUNE.index("--storage")]
    tried = run(*here, "--out", "one", "--json").json[0]["tried"]
    outcome = run("fleet", "--storage", "one/studies.journal")
    assert outcome.code == 0
    assert f"{tried} of {tried}" in outcome.out
    assert "they are in the results folder" in outcome.err


def test_a_missing_driver_is_named_with_the_extra_that_installs_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    outcome = run("fleet", "--storage", "postgresql://someone@localhost/name")
    assert outcome.code == 3
    assert "pip install 'scanlab[fleet]'" in outcome.err
