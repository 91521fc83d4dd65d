"""`scanlab profile`: what serves is listed, shown, compared, and can be restored."""

from __future__ import annotations

import pytest

from scanlab.contract import registry
from scanlab.contract.problem import ScanProblem
from scanlab.runtime.deployment import deploy
from scanlab.runtime.profile import Profile, ProfileEntry

PROBLEM = ScanProblem(batch=1, dim=6, length=20, state=4)


def entry(chunk):
    return ProfileEntry(PROBLEM, "chunked", "0", {"chunk": chunk}, {"why": f"chunk {chunk} won"})


@pytest.fixture
def chosen(run):
    """Two choices for one problem, the second in service."""
    for chunk in (16, 32):
        deploy([entry(chunk)])
    return run


def test_without_a_choice_there_is_a_cure(run):
    outcome = run("profile", "list")
    assert (outcome.code, "Run `scanlab tune`" in outcome.out) == (0, True)
    assert run("profile", "--json").json["entries"] == []


def test_choices_are_listed_with_the_rank_of_their_evidence(chosen):
    shown = chosen("profile").out
    for text in (PROBLEM.op, "batch=1,dim=6", "chunked", "none"):  # a narrow table folds the rest
        assert text in shown
    (listed,) = chosen("profile", "list", "--json").json["entries"]
    assert (listed["problem"], listed["config"], listed["rank"]) == (PROBLEM.key, {"chunk": 32}, "none")


def test_a_choice_is_shown_with_its_evidence_and_what_it_replaced(chosen):
    shown = chosen("profile", "show", PROBLEM.key).out
    for text in ("chunk 32 won", 'replaced: chunked {"chunk":16}'):
        assert text in shown
    found = chosen("profile", "show", PROBLEM.key, "--json").json
    assert found["entry"]["evidence"] == {"why": "chunk 32 won"}
    assert [each["config"] for each in found["replaced"]] == [{"chunk": 16}]


def test_evidence_that_counts_for_nothing_here_is_shown_with_the_reason(run):
    backend = registry.get("chunked")
    deploy([ProfileEntry(PROBLEM, "chunked", backend.source_hash, {"threads": 4096}, {"why": "it won"})])
    doubt = "it cannot serve: chunked: threads=4096"
    (listed,) = run("profile", "list", "--json").json["entries"]
    assert (listed["rank"], doubt in listed["doubt"]) == ("none", True)
    assert f"evidence: none: {doubt}" in run("profile", "show", PROBLEM.key).out
    assert doubt.removeprefix("it ") in run("best", "--problem", PROBLEM.key).out


def test_a_choice_is_removed_and_restored(chosen):
    assert "removed chunked" in chosen("profile", "remove", PROBLEM.key).out
    assert "nothing: removed" in chosen("profile").out
    assert "the choice was removed" in chosen("profile", "show", PROBLEM.key).out
    assert chosen("profile", "restore", PROBLEM.key, "--json").json["config"] == {"chunk": 32}
    assert "serves" in chosen("profile", "restore", PROBLEM.key).out
    assert chosen("profile", "--json").json["entries"][0]["config"] == {"chunk": 16}


def test_profiles_are_compared(chosen, tmp_path):
    outcome = chosen("profile", "diff")
    assert outcome.code == 1
    assert '- chunked {"chunk":16}' in outcome.out
    assert '+ chunked {"chunk":32}' in outcome.out
    elsewhere = Profile("another", "an abacus", (entry(32),))
    elsewhere.save(tmp_path / "other.json")
    assert (chosen("profile", "diff", "other.json").out) == "no difference\n"
    Profile("another", "an abacus").save(tmp_path / "other.json")
    (change,) = chosen("profile", "diff", "other.json", "--json").json
    assert (change["before"], change["after"]["config"]) == (None, {"chunk": 32})


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("show",), "show takes a problem"),
        (("remove", "batch=1,dim=7,length=20"), "nothing is chosen for"),
        (("restore", "batch=1,dim=7,length=20"), "was replaced"),
        (("show", "batch=1,dim=7,length=20"), "nothing was ever chosen"),
        (("show", "nonsense"), "error:"),
        (("list", "batch=1,dim=7,length=20"), "list takes no problem"),
        (("diff", "missing.json"), "there is no profile missing.json"),
    ],
)
def test_what_cannot_be_done_is_said(chosen, arguments, complaint):
    outcome = chosen("profile", *arguments)
    assert outcome.code == 2
    assert complaint in outcome.err
