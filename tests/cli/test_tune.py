"""`scanlab tune` from a problem to a profile: what it prints, writes, resumes and refuses."""

from __future__ import annotations

import itertools
import os
import re
import signal
from functools import partial

import pytest

from helpers.simulated import tune_simulated
from scanlab.report.decision import load_decisions, save_decisions
from scanlab.runtime.profile import Profile, profile_path

TUNE = ("tune", "--problem", "batch=1,dim=6,length=20,state=4", "--backends", "reference two_phase", "--out", "here")


def test_tune_chooses_reports_and_deploys_and_a_second_run_measures_nothing_again(run, tmp_path, monkeypatch):
    quick = partial(tune_simulated, time_ms=lambda each: 1.0 if each.backend.name == "two_phase" else 5.0)
    monkeypatch.setattr("scanlab.cli.tune_problems.tune_problem", quick)
    monkeypatch.setattr("scanlab.cli.tune_problems.MIN_SWEEP_S", 1e9)
    first = run(*TUNE, "--budget", "18s", "--json")
    assert first.code == 0
    (found,) = first.json
    assert found["winner"]["backend"] == "two_phase"
    assert found["winner"]["verdict"]["passed"]
    assert found["winner"]["backend"] in found["why"]
    assert found["new"] == found["tried"] > 0
    assert (found["op"], found["problem"], found["objective"]) == ("selective_scan", TUNE[2], "median")
    assert (found["deployed"], found["evidence"]) == (True, "hold-out")
    assert found["noise_floor"] > 0
    assert found["rounds"] > found["disturbed_rounds"] == 0
    assert "attainable_share" in found
    leader, *_ = found["ranking"]
    assert (leader["backend"], leader["is_winner"], leader["behind"]) == ("two_phase", True, 1.0)
    assert leader["median_ms"] > 0
    report = tmp_path / "here" / "report"
    assert (report / "report.md").stat().st_size > 1000
    assert list((report / "figures").glob("speedup-*.png"))
    assert found["why"] in (report / "report.md").read_text()
    assert "two_phase (deployed)" in (report / "report.md").read_text()
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


def test_tune_takes_several_problems_ranks_by_the_tail_and_leaves_the_profile_alone(run, monkeypatch):
    asked = []

    def quick(*given, **options):
        asked.append(options["objective"])
        return tune_simulated(*given, time_ms=lambda each: 1.0 if each.backend.name == "two_phase" else 5.0, **options)

    monkeypatch.setattr("scanlab.cli.tune_problems.tune_problem", quick)
    monkeypatch.setattr("scanlab.cli.tune_problems.MIN_SWEEP_S", 1e9)
    more = ("--problem", "batch=1,dim=6,length=30,state=4", "--objective", "p95", "--no-deploy", "--budget", "80s")
    outcome = run(*TUNE, *more, "--json")
    assert [found["winner"]["problem"] for found in outcome.json] == [TUNE[2], more[1]]
    assert all("at the 95th percentile" in found["why"] for found in outcome.json)
    assert asked == ["p95", "p95"]
    assert not profile_path().exists()
    numbers = outcome.json[0]["winner"]["measurement"]
    assert numbers["speedup_low"] <= numbers["speedup"] <= numbers["speedup_high"]
    assert isinstance(numbers["blocks"], int)
    assert isinstance(run(*TUNE, "--json", "--raw", "--no-deploy").json[0]["winner"]["measurement"]["blocks"], list)


def test_tune_on_a_busy_machine_chooses_nothing_and_says_so(run, tmp_path, monkeypatch):
    busy = {"disturbance": lambda second: "other processes used 900 ms of CPU"}
    monkeypatch.setattr("scanlab.cli.tune_problems.tune_problem", partial(tune_simulated, worker=busy))
    outcome = run(*TUNE, "--trials", "1")
    assert outcome.code == 3
    assert outcome.out.splitlines()[-1].startswith("No winner: the machine was too busy")
    assert outcome.err.count("rounds were disturbed") == 1
    assert outcome.out.count("blocks were disturbed") == 2  # once for all candidates, and in the sentence
    assert "give it more time" not in outcome.out + outcome.err
    assert "speed-up" not in outcome.out  # no table without rows
    assert re.search(r"Took \d+ s: \d+ s of verifying and measuring.* s of waiting for a quiet machine", outcome.out)
    assert "building two_phase" in outcome.err  # a log file shows what goes on
    assert not profile_path().exists()


def interrupt(*_, **__):
    raise KeyboardInterrupt


def terminate_then(function):
    def terminated(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        function(*arguments)

    return terminated


@pytest.mark.parametrize("moment", ["time against length", "the next problem", "deployment", "the report"])
def test_a_choice_that_is_finished_is_deployed_and_reported_whenever_a_person_interrupts(
    run, tmp_path, monkeypatch, moment
):
    tuned = itertools.count()

    def quick(*given, **options):
        if moment == "the next problem" and next(tuned):
            raise KeyboardInterrupt
        return tune_simulated(*given, time_ms=lambda each: 1.0 if each.backend.name == "two_phase" else 5.0, **options)

    monkeypatch.setattr("scanlab.cli.tune_problems.tune_problem", quick)
    monkeypatch.setattr("scanlab.cli.tune_problems.sweep_lengths", interrupt)
    if moment == "deployment":
        monkeypatch.setattr("scanlab.cli.finished.save_decisions", terminate_then(save_decisions))
    if moment == "the report":
        monkeypatch.setattr("scanlab.cli.finished.write", interrupt)
    outcome = run(*TUNE, "--problem", "batch=1,dim=6,length=30,state=4", "--budget", "60s", "--json")
    assert outcome.code == 130
    assert "interrupted" in outcome.err
    (entry,) = Profile.load(profile_path()).entries
    assert entry.backend == "two_phase"
    (decision,) = load_decisions(tmp_path / "here").decisions
    assert decision.deployed
    if moment == "the report":
        assert "`scanlab report here` writes it" in outcome.err
    else:
        assert [found["deployed"] for found in outcome.json] == [True]
        assert decision.why in (tmp_path / "here" / "report" / "report.md").read_text()


def test_an_interruption_before_the_first_choice_changes_nothing(run, monkeypatch):
    monkeypatch.setattr("scanlab.cli.tune.cases_of", interrupt)
    outcome = run(*TUNE, "--json")
    assert (outcome.code, outcome.json) == (130, [])
    assert not profile_path().exists()


def test_tune_refuses_what_it_cannot_do(run):
    assert "no backend is called 'nativ'" in run("tune", "--backends", "nativ").err
    unwritable = run(*TUNE[:-1], "/proc/nowhere")
    assert unwritable.code == 2
    assert "cannot write results" in unwritable.err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--threads", "0"), "--threads"),
        (("--threads", "9999"), "threads=9999: reference runs on 1 to"),
        (("--seed", "-5"), "--seed"),
        (("--backends", ""), "--backends '' names no backend"),
        (("--seed", "99999999999"), "--seed"),
        (("--backends", "chunked,chunked"), "'chunked' is given 2 times: name it once"),
        (("--problem", TUNE[2]), "is given 2 times: name it once"),
        (("--objective", "mean"), "'mean' is not one of"),
        (("--objective", "p59"), "'p59' is not one of 'median', 'p95'. Did you mean 'p95'?"),
        (("--budget", "999999999999999h"), "duration '999999999999999h': must be at most 720h"),
    ],
)
def test_tune_refuses_what_no_run_can_do(run, tmp_path, options, complaint):
    outcome = run(*TUNE, *options)
    assert outcome.code == 2
    assert complaint in outcome.err
    assert not (tmp_path / "here").exists()


def test_a_place_that_holds_something_else_is_refused_before_anything_is_tuned(run, monkeypatch, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("important\n")
    monkeypatch.setenv("SCANLAB_PROFILE", str(path))
    outcome = run("tune", "--problem", "batch=1,dim=4,length=8", "--backends", "reference", "--trials", "1")
    assert (outcome.code, "is not a profile" in outcome.err) == (2, True)
    assert "timing" not in outcome.err
    assert path.read_text() == "important\n"
