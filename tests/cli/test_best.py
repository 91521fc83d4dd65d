"""`scanlab best`: what serves and why; with --recheck, whether every choice still holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.records import trial
from scanlab.cli import best as command
from scanlab.contract import registry
from scanlab.contract.problem import ScanProblem
from scanlab.runtime.decisions import decide
from scanlab.runtime.profile import Profile, ProfileEntry, profile_path
from scanlab.tuning.recheck import CheckedChoice

PROBLEM = ScanProblem(batch=1, dim=6, length=20, state=4)


@pytest.fixture
def profile(run, tmp_path):
    """A profile with one choice that was measured."""
    two_phase = registry.get("two_phase")
    chosen = trial(problem=PROBLEM, backend="two_phase", source_hash=two_phase.source_hash, config={"threads": 1})
    evidence = {"trial": chosen.to_json()}
    Profile.empty().with_entry(
        ProfileEntry(PROBLEM, "two_phase", two_phase.source_hash, {"threads": 1}, evidence)
    ).save(profile_path())


@pytest.mark.parametrize(
    ("holds", "code", "word"), [(True, 0, "holds"), (False, 1, "DEMOTED"), (None, 3, "unknown")], ids=str
)
def test_the_exit_code_says_whether_every_choice_holds(run, profile, monkeypatch, holds, code, word):
    seen = []

    def check_trial(trial, record, seconds, rivals):
        seen.append((trial.label, [each.backend.name for each in rivals]))  # what serves untuned is the rival
        return CheckedChoice(holds, "because of [the] reason")

    monkeypatch.setattr(command, "recheck_choice", check_trial)
    outcome = run("best", "--recheck", "--budget", "5s")
    assert outcome.code == code
    assert word in outcome.out
    assert "because of [the] reason" in outcome.out
    assert seen == [("two_phase threads=1", [decide(PROBLEM, None).backend])]
    assert run("best", "--recheck", "--json").json == [
        {"problem": PROBLEM.key, "backend": "two_phase", "holds": holds, "reason": "because of [the] reason"}
    ]


def test_a_problem_of_any_size_is_looked_up(run):
    (answer,) = run("best", "--problem", "batch=4096,dim=65536,length=65536", "--json").json
    assert answer["backend"]


def test_an_interrupted_recheck_says_that_nothing_was_changed(run, profile, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "recheck_choice", interrupt)
    outcome = run("best", "--recheck")
    assert (outcome.code, outcome.out) == (130, "")
    assert "interrupted: a recheck changes nothing" in outcome.err


def test_a_choice_without_evidence_does_not_hold(run):
    Profile.empty().with_entry(ProfileEntry(PROBLEM, "two_phase", "0" * 16, {"threads": 1})).save(profile_path())
    outcome = run("best", "--recheck")
    assert outcome.code == 1
    assert "carries no evidence" in outcome.out


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"measurement": {"unheard": 1}}, "the evidence for two_phase is damaged: KeyError"),
        ({"problem": "batch=1"}, "the evidence for two_phase is damaged: ProblemError"),
        ({"started_at": "monday"}, "the evidence for two_phase is damaged: TypeError"),
        ({"config": {"threads": 4}}, "two_phase threads=1 is deployed on the evidence of two_phase threads=4"),
    ],
)
def test_a_choice_whose_evidence_is_damaged_or_another_does_not_hold(run, profile, damage, reason):
    (entry,) = Profile.load(profile_path()).entries
    trial = entry.evidence["trial"] | damage
    Profile.empty().with_entry(replace(entry, evidence={"trial": trial})).save(profile_path())
    outcome = run("best", "--recheck", "--budget", "1s")
    assert outcome.code == 1
    assert reason in outcome.out


def test_without_a_profile_there_is_nothing_to_check(run):
    outcome = run("best", "--recheck")
    assert outcome.code == 2
    assert "Run `scanlab tune`" in outcome.err


def test_it_says_what_serves_on_what_evidence_and_what_would_in_its_place(run, profile, monkeypatch):
    (answer,) = run("best", "--problem", PROBLEM.key, "--json").json
    assert (answer["backend"], answer["basis"], answer["rank"]) == ("two_phase", "exact", "search")
    assert answer["second"]["backend"] != "two_phase"
    assert answer["tune"] is None
    other = PROBLEM.replace(gradients=True)
    (untuned,) = run("best", "--problem", other.key, "--json").json
    assert untuned["tune"] == f"scanlab tune --problem {other.key}"
    monkeypatch.setenv("SCANLAB_BACKEND", "chunked:threads=1")
    (named,) = run("best", "--problem", PROBLEM.key, "--json").json
    assert (named["backend"], named["config"]["threads"], named["basis"]) == ("chunked", 1, "named")
    assert (named["second"]["backend"], named["second"]["basis"]) == ("two_phase", "exact")
    assert "in its place: two_phase" in run("best", "--problem", PROBLEM.key).out
