"""`scanlab tune` from a problem to a profile: what it prints, writes, resumes and refuses."""

from __future__ import annotations

from scanlab.runtime.profile import Profile, profile_path

TUNE = ("tune", "--problem", "batch=1,dim=6,length=20,state=4", "--backends", "reference two_phase", "--out", "here")


def test_tune_chooses_reports_and_deploys_and_a_second_run_measures_nothing_again(run, tmp_path):
    first = run(*TUNE, "--budget", "18s", "--json")
    assert first.code == 0
    (found,) = first.json
    assert found["winner"]["backend"] in ("reference", "two_phase")
    assert found["winner"]["verdict"]["passed"]
    assert found["winner"]["backend"] in found["why"]
    assert found["new"] == found["tried"] > 0
    report = tmp_path / "here" / "report"
    assert (report / "report.md").stat().st_size > 1000
    assert list((report / "figures").glob("speedup-*.png"))
    (entry,) = Profile.load(profile_path()).entries
    assert (entry.backend, dict(entry.config)) == (found["winner"]["backend"], found["winner"]["config"])
    assert entry.evidence["trial"]["id"] == found["winner"]["id"]
    best = run("best", "--problem", TUNE[2], "--json").json[0]
    assert (best["backend"], best["basis"]) == (entry.backend, "exact")
    again = run(*TUNE, "--budget", "18s", "--json").json[0]
    assert again["tried"] == found["tried"]
    assert again["new"] == 0
    assert run("report", "here", "--to", "elsewhere").code == 0
    assert (tmp_path / "elsewhere" / "index.html").exists()


def test_tune_that_could_try_nothing_says_so_and_writes_no_report(run, tmp_path, monkeypatch):
    monkeypatch.setattr("scanlab.tuning.tune._Run.search", lambda self: None)
    outcome = run(*TUNE, "--trials", "1")
    assert outcome.code == 3
    assert "No winner" in outcome.out
    assert not (tmp_path / "here" / "report").exists()


def test_tune_refuses_what_it_cannot_do(run):
    assert "no backend is called 'nativ'" in run("tune", "--backends", "nativ").err
    refused = run(*TUNE, "--threads", "0")
    assert refused.code == 2
    unwritable = run(*TUNE[:-1], "/proc/nowhere")
    assert unwritable.code == 2
    assert "cannot write results" in unwritable.err
