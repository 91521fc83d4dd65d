"""A profile survives the disk, finds the nearest problem, and refuses what is damaged or foreign."""

from __future__ import annotations

import json
import os
import stat
from typing import Any

import pytest

from scanlab.contract.problem import ScanProblem
from scanlab.errors import ProfileError
from scanlab.runtime.profile import Profile, ProfileEntry, load_profile, profile_path

PROBLEM = ScanProblem(batch=1, dim=384, length=197)


def entry(problem: ScanProblem = PROBLEM, backend: str = "reference", adopted_from: str | None = None) -> ProfileEntry:
    return ProfileEntry(problem, backend, "0123456789abcdef", {"threads": 1}, {"speedup": 3.5}, adopted_from)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "profile.json"
    Profile.empty().with_entry(entry()).save(path)
    return path


def damage(path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_saved_profile_loads_as_it_was(saved):
    profile = Profile.load(saved)
    assert profile.exact(PROBLEM) == entry()
    assert profile.exact(PROBLEM.replace(length=198)) is None
    assert [path.name for path in saved.parent.iterdir()] == ["profile.json"]


def test_whoever_may_read_other_files_may_read_a_profile(tmp_path):
    before = os.umask(0o022)
    try:
        Profile.empty().save(tmp_path / "profile.json")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "profile.json").stat().st_mode) == 0o644


def test_a_problem_has_one_entry_and_the_newest_stays():
    profile = Profile.empty().with_entry(entry()).with_entry(entry(backend="two_phase"))
    assert [each.backend for each in profile.entries] == ["two_phase"]
    assert [each.backend for each in profile.replaced] == ["reference"]


def test_a_profile_of_scanlab_0_1_loads(saved):
    old = {key: value for key, value in entry().to_json().items() if key != "adopted_from"} | {"kin": "an abacus"}
    content = json.loads(saved.read_text()) | {"entries": [old]}
    content.pop("replaced")
    saved.write_text(json.dumps(content))
    (loaded,) = Profile.load(saved).entries
    assert loaded == entry(adopted_from="an abacus")


def test_the_nearest_problem_is_of_the_same_kind_and_nearest_in_ratio():
    profile = Profile.empty()
    for length in (100, 190, 1000, 10_000):
        profile = profile.with_entry(entry(PROBLEM.replace(length=length)))
    profile = profile.with_entry(entry(PROBLEM.replace(dtype="bfloat16")))
    for problem in (PROBLEM, PROBLEM.replace(has_z=False)):
        near: Any = [each.problem for each in profile.nearest(problem)]
        assert [each.length for each in near] == [190, 100, 1000]
    assert profile.nearest(PROBLEM.replace(direction="reverse")) == ()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"schema_version": 99}, "has schema 99: must be 1"),
        ({"machine_id": "another", "machine": "an abacus"}, r"from another machine \(an abacus\)"),
        ({"entries": [{"problem": "batch=1"}]}, "is damaged: "),
        ({"entries": 7}, "is damaged: "),
        ({"entries": [{"problem": 5}]}, "is damaged: "),
        ({"entries": [entry().to_json() | {"backend": 5}]}, "must be text"),
        ({"entries": [entry().to_json() | {"config": {"threads": []}}]}, "must be numbers, booleans or text"),
    ],
)
def test_a_profile_that_does_not_hold_here_is_refused(saved, changes, complaint):
    damage(saved, **changes)
    with pytest.raises(ProfileError, match=complaint):
        Profile.load(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"entries": []}', "\x00\x01", "[" * 100_000])
def test_a_file_that_is_no_profile_is_refused(tmp_path, text):
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(ProfileError, match="is damaged: .*Run `scanlab tune`"):
        Profile.load(path)


def test_a_place_that_cannot_be_written_is_named_with_the_cure(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ProfileError, match=r"cannot write the profile .*SCANLAB_PROFILE"):
        Profile.empty().save(tmp_path / "file" / "profile.json")


def test_the_machine_s_profile_is_where_the_environment_says(saved, monkeypatch, tmp_path):
    monkeypatch.delenv("SCANLAB_PROFILE", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "nothing"))
    assert load_profile() is None
    assert profile_path().stem == Profile.empty().machine_id
    monkeypatch.setenv("SCANLAB_PROFILE", str(saved))
    assert load_profile() == Profile.load(saved)
    monkeypatch.setenv("SCANLAB_PROFILE", str(tmp_path / "missing.json"))
    with pytest.raises(ProfileError, match="cannot read the profile"):
        load_profile()


def test_there_is_no_profile_in_the_home_folder_of_another_user(monkeypatch):
    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.delenv("SCANLAB_PROFILE", raising=False)
    monkeypatch.setattr("pathlib.Path.exists", closed)
    assert load_profile() is None
