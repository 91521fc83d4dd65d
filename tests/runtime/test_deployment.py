"""Choices are deployed by the strength of their evidence, none is lost, and each replacement can be undone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import filelock
import pytest

from scanlab.contract import registry
from scanlab.contract.base import Problem
from scanlab.contract.evidence import EvidenceRank
from scanlab.contract.machine import this_machine
from scanlab.contract.problem import ScanProblem
from scanlab.errors import ProfileError
from scanlab.runtime.deployment import (
    deploy,
    diff,
    evidence_doubt,
    expect_deployable,
    remove,
    restore,
    standing_rank,
    update_profile,
)
from scanlab.runtime.profile import Profile, ProfileEntry, default_path

PROBLEM = ScanProblem(batch=1, dim=384, length=197)
PHASES = ("search", "comparison", "holdout")

WRITER = """
import sys
from pathlib import Path
from scanlab.contract.problem import ScanProblem
from scanlab.runtime.deployment import deploy
from scanlab.runtime.profile import ProfileEntry
print("ready", flush=True)
sys.stdin.readline()
for length in range(1, 6):
    problem = ScanProblem(batch=1, dim=int(sys.argv[2]), length=length)
    deploy([ProfileEntry(problem, "native", "x", {})], Path(sys.argv[1]))
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "profile.json"


def entry(phase="holdout", backend="reference", disturbed=(None,) * 6, threads=1, **changes):
    blocks = [{"disturbed": reason} for reason in disturbed]
    machine = json.loads(json.dumps(this_machine().to_json()))
    evidence = {"why": "it won", "trial": {"phase": phase, "machine": machine, "measurement": {"blocks": blocks}}}
    source_hash = registry.get(backend).source_hash
    return ProfileEntry(
        **{
            "problem": PROBLEM,
            "backend": backend,
            "source_hash": source_hash,
            "config": {"threads": threads},
            "evidence": evidence,
        }
        | changes
    )


def served(path):
    return Profile.load(path).exact(PROBLEM)


def test_of_the_choices_that_many_processes_deploy_at_once_none_is_lost(path):
    command = [sys.executable, "-c", WRITER, str(path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([*command, str(dim)], **pipes) for dim in range(1, 5)]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=120)
        assert writer.returncode == 0
    assert len(Profile.load(path).entries) == 4 * 5


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"phase": "holdout"}, "hold-out"),
        ({"phase": "comparison"}, "comparison"),
        ({"phase": "search"}, "search"),
        ({"disturbed": ("steal",) * 9}, "disturbed"),
        ({"disturbed": (*("steal",) * 9, *(None,) * 6)}, "hold-out"),
        ({"disturbed": (None,) * 5}, "search"),
        (
            {"evidence": {"trial": {"state": "disturbed", "phase": "race", "measurement": {"blocks": [{}]}}}},
            "disturbed",
        ),
        ({"phase": "lengths"}, "none"),
        ({"evidence": {}}, "none"),
        ({"evidence": {"trial": {"phase": "search", "measurement": None}}}, "none"),
        ({"adopted_from": "an abacus"}, "none"),
    ],
)
def test_the_rank_of_an_entry_is_that_of_its_trial(changes, label):
    assert entry(**changes).rank.label == label


@pytest.mark.parametrize("before", range(3))
@pytest.mark.parametrize("after", range(3))
def test_weaker_evidence_does_not_replace_stronger(path, before, after):
    deploy([entry(PHASES[before])], path)
    new = entry(PHASES[after], threads=2)
    deployment = deploy([new], path)
    if after >= before:
        assert deployment.deployed == (new,)
        assert (deployment.notices, served(path)) == ((), new)
    else:
        (notice,) = deployment.notices
        assert "was not deployed, because its evidence" in notice
        assert deployment.deployed == ()
        assert served(path) == entry(PHASES[before])


def test_a_disturbed_measurement_replaces_nothing_that_was_measured(path):
    deploy([entry("search")], path)
    assert deploy([entry(disturbed=("steal",) * 5, threads=2)], path).deployed == ()


@pytest.mark.parametrize("stale", [{"source_hash": "of another source"}, {"backend": "reference", "evidence": {}}])
def test_evidence_of_another_source_protects_nothing(path, stale):
    deploy([entry(**stale)], path)
    new = entry("search", threads=2)
    assert deploy([new], path).deployed == (new,)


def test_what_a_backend_that_is_gone_won_protects_nothing(path):
    deploy([ProfileEntry(PROBLEM, "gone", "0", {}, entry().evidence)], path)
    assert deploy([entry("search")], path).deployed


def on_other(part, **facts):
    """The evidence of a hold-out on a machine of which some facts are others."""
    machine = json.loads(json.dumps(this_machine().to_json()))
    trial = entry().evidence["trial"] | {"machine": machine | {part: machine[part] | facts}}
    return {"why": "it won", "trial": trial}


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"threads": 4096}, "it cannot serve: reference: threads=4096"),
        ({"config": {"thread": 1}}, "it cannot serve: reference: no tunable 'thread'"),
        ({"evidence": on_other("silicon", model_name="abacus")}, "it was measured on another machine: abacus"),
        ({"evidence": on_other("software", torch="0.1")}, "it was measured with other software"),
        ({"evidence": {"trial": {"machine": {"silicon": 3}}}}, "the evidence is damaged"),
        ({"evidence": {"trial": 3}}, "the evidence is damaged"),
        ({"evidence": {}}, "it carries no measurement"),
        ({"source_hash": "of another source"}, "the source of reference has changed"),
        ({"adopted_from": "an abacus"}, "adopted from an abacus"),
    ],
)
def test_what_cannot_serve_or_was_measured_elsewhere_protects_nothing(path, changes, doubt):
    before = entry(**changes)
    assert doubt in evidence_doubt(before)
    assert standing_rank(before) is EvidenceRank.NONE
    Profile.empty().with_entry(before).save(path)
    new = entry("search", problem=before.problem)
    assert deploy([new], path).deployed == (new,)
    assert Profile.load(path).replaced == (before,)
    assert (evidence_doubt(new), standing_rank(new).label) == (None, "search")


def test_an_adopted_choice_is_replaced_by_a_newer_one_and_by_what_is_measured_here(path):
    for new in (entry(adopted_from="one"), entry(adopted_from="two", threads=2), entry("search")):
        assert deploy([new], path).deployed == (new,)
    assert deploy([entry(adopted_from="one")], path).deployed == ()


def test_what_was_replaced_is_kept_and_can_be_restored(path):
    first, second = entry("search"), entry("comparison", threads=2)
    deploy([first], path)
    deploy([second], path)
    assert Profile.load(path).replaced == (first,)
    assert restore(PROBLEM, path) == first
    assert served(path) == first
    assert restore(PROBLEM, path) == second
    assert Profile.load(path).replaced == (first,)


def test_what_was_removed_can_be_restored(path):
    deploy([entry()], path)
    assert remove(PROBLEM, path) == entry()
    assert served(path) is None
    assert restore(PROBLEM, path) == entry()
    assert served(path) == entry()
    assert Profile.load(path).replaced == ()


def test_the_history_is_bounded(path):
    for threads in range(1, 20):
        deploy([entry(threads=threads)], path)
    assert [each.config["threads"] for each in Profile.load(path).replaced] == [16, 17, 18]


@pytest.mark.parametrize("operation", [remove, restore])
def test_what_is_not_there_is_neither_removed_nor_restored(path, operation):
    deploy([entry()], path)
    before = path.read_bytes()
    with pytest.raises(ProfileError, match="see `scanlab profile list`"):
        operation(PROBLEM.replace(length=3), path)
    assert path.read_bytes() == before


def test_a_difference_is_in_what_serves_and_not_in_the_evidence():
    other = PROBLEM.replace(length=3)
    before: dict[Problem, ProfileEntry] = {PROBLEM: entry("search"), other: entry(problem=other)}
    same: dict[Problem, ProfileEntry] = {PROBLEM: entry("holdout"), other: entry(problem=other)}
    after: dict[Problem, ProfileEntry] = {PROBLEM: entry(threads=2)}
    assert diff(before, same) == ()
    changed = diff(before, after)
    assert [(each.problem, each.after) for each in changed] == [(PROBLEM, entry(threads=2)), (other, None)]


@pytest.mark.parametrize("text", ["{", '{\n  "schema_version": 1,\n  "mach', "\0" * 300])
def test_a_profile_that_cannot_be_read_is_moved_aside_by_deploy_alone(path, text):
    path.write_text(text)
    with pytest.raises(ProfileError, match="is damaged"):
        remove(PROBLEM, path)
    assert path.read_text() == text
    (notice,) = deploy([entry()], path).notices
    (aside,) = path.parent.glob("*.refused-*")
    assert str(aside) in notice
    assert aside.read_text() == text
    assert served(path) == entry()


def test_a_file_of_another_program_stays_as_it_is(path):
    path.write_text("name,value\nimportant,1\n")
    with pytest.raises(ProfileError, match="is not a profile and was left as it is"):
        deploy([entry()], path)
    assert path.read_text() == "name,value\nimportant,1\n"
    path.unlink()
    os.mkfifo(path)  # as /dev/null, which names no profile, and must stay too
    with pytest.raises(ProfileError, match="not a regular file"):
        deploy([entry()], path)
    assert path.is_fifo()


@pytest.mark.parametrize("linked", ["the file", "its folder"])
def test_a_damaged_default_profile_behind_a_link_is_moved_aside(monkeypatch, tmp_path, linked):
    monkeypatch.delenv("SCANLAB_PROFILE", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    path, elsewhere = default_path(), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / path.name).write_text("no profile at all")
    path.parent.parent.mkdir(parents=True)
    if linked == "the file":
        path.parent.mkdir()
        path.symlink_to(elsewhere / path.name)
    else:
        path.parent.symlink_to(elsewhere)
    expect_deployable()
    (notice,) = deploy([entry()]).notices
    assert "It was moved to" in notice
    assert served(path) == served(elsewhere / path.name) == entry()


def test_what_raises_while_it_changes_a_profile_leaves_it_as_it_is(path):
    deploy([entry()], path)

    def change(profile):
        raise KeyError

    with pytest.raises(KeyError):
        update_profile(change, path)
    assert served(path) == entry()


@pytest.mark.parametrize("place", ["/proc/profile.json", "file/profile.json"])
def test_a_place_that_cannot_be_written_is_refused_before_a_tuning(monkeypatch, tmp_path, place):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCANLAB_PROFILE", place)
    with pytest.raises(ProfileError, match=r"cannot write the profile .*Name another place in SCANLAB_PROFILE"):
        expect_deployable()


def test_a_lock_that_another_process_holds_is_not_waited_for_without_end(monkeypatch, path):
    monkeypatch.setattr("scanlab.runtime.deployment.LOCK_TIMEOUT_S", 0.05)
    monkeypatch.setenv("SCANLAB_PROFILE", str(path))
    with filelock.FileLock(f"{path}.lock"):
        for change in (expect_deployable, lambda: deploy([entry()])):
            with pytest.raises(ProfileError, match=r"another process has held .*profile.json.lock"):
                change()
    assert deploy([entry()]).deployed


def test_a_place_that_cannot_be_written_is_named_with_the_cure(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ProfileError, match=r"cannot write the profile .*SCANLAB_PROFILE"):
        deploy([entry()], tmp_path / "file" / "profile.json")
