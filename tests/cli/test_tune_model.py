"""`scanlab tune --model` from a model to its profile."""

from __future__ import annotations

from functools import partial

import pytest

from helpers.simulated import tune_simulated
from scanlab.errors import InputError
from scanlab.models.model_op import op_problems
from scanlab.models.tune_model import tune_model
from scanlab.runtime.profile import Profile, profile_path

TUNE = ("tune", "--model", "digits", "--batch", "2", "--budget", "100s", "--out", "here")


def time_ms(candidate):
    """Return less for bfloat16 and for tuned ops; an op takes half as long by what is not its default."""
    config = candidate.config
    if candidate.backend.name == "assembly":
        return (8.0 if config["dtype"] == "bfloat16" else 10.0) - 3.0 * (config["tuned"] != "none")
    return 20.0 if candidate.backend.op == "model" else 1.0 if candidate.is_default else 0.5


def timed(*arguments):
    """Return the problems of the ops as they are; two ops take all the time, whatever else this machine does."""
    seconds = {"selective_scan": 2.0, "mamba_front": 1.0}
    return {each: (calls, seconds.get(each.op, 1e-3)) for each, (calls, _) in op_problems(*arguments).items()}


@pytest.fixture(autouse=True)
def simulated(monkeypatch):
    monkeypatch.setattr("scanlab.models.tune_model.op_problems", timed)
    quick = partial(tune_model, tune=partial(tune_simulated, time_ms=time_ms))
    monkeypatch.setattr("scanlab.cli.tune_model.tune_model", quick)


def test_the_model_and_its_ops_are_tuned_reported_and_deployed(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SCANLAB_PROFILE", str(tmp_path / "not-yet-written.json"))
    found = run(*TUNE, "--dtype", "auto", "--json")
    assert found.code == 0, found.err
    assert "compared without the profile" not in found.err  # there is none yet
    winner = found.json["model"]["winner"]
    assert winner["config"]["dtype"] == "bfloat16"
    assert winner["config"]["tuned"] != "none"
    breakdown = found.json["breakdown"]
    assert breakdown["before_ms"] > breakdown["after_ms"]
    assert {each["dtype"] for each in breakdown["dtypes"]} == {"float32", "bfloat16_products", "bfloat16"}
    assert "scanlab.models.model_op import cast; cast(model, torch.bfloat16)" in found.json["model"]["notes"][-1]
    assert all(each["median_ms"] or each["refusal"] for each in breakdown["dtypes"])
    deployed = Profile.load(profile_path()).entries
    assert {"model", *winner["config"]["tuned"].split("+")} <= {entry.problem.op for entry in deployed}
    report = (tmp_path / "here" / "report" / "report.md").read_text()
    assert "Model digits, batch 2, size 8" in report
    assert (tmp_path / "here" / "report" / "figures" / "breakdown-0.png").exists()


@pytest.mark.parametrize("moment", ["op_shares", "staging_profile", "products_s"])
def test_an_interruption_keeps_what_is_finished_and_deploys_a_choice_among_whole_models_alone(run, monkeypatch, moment):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"scanlab.models.tune_model.{moment}", interrupt)
    monkeypatch.setattr("scanlab.cli.finished.write", lambda *_: [])
    found = run(*TUNE, "--json")
    assert found.code == 130
    assert (len(found.json["ops"]) > 0) == (moment != "op_shares")
    assert profile_path().exists() == (moment == "products_s")


def test_float32_alone_and_the_sizes_of_the_workload_are_the_default(run, monkeypatch):
    asked = {}

    def tune_model(problem, budget_s, store, **options):
        asked.update(options, problem=problem)
        raise InputError("enough")

    monkeypatch.setattr("scanlab.cli.tune_model.tune_model", tune_model)
    assert run("tune", "--model", "vim-tiny").code == 2
    assert asked["dtypes"] == ("float32",)
    assert (asked["problem"].batch, asked["problem"].size, asked["problem"].max_logit_error) == (1, 224, 1e-4)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--dtype", "int8"), "must be auto or one of"),
        (("--problem", "batch=1,dim=8,length=8"), "--model takes"),
        (("--model", "vim-huge"), "no model is called 'vim-huge'"),
        (("--dtype", "bfloat16", "--max-logit-error", "1e-6"), "Allow more with --max-logit-error"),
    ],
)
def test_what_cannot_be_tuned_is_refused(run, options, complaint):
    outcome = run(*TUNE, *options)
    assert outcome.code == 2
    assert complaint in outcome.err


def test_a_profile_that_cannot_be_read_takes_no_part_and_is_replaced(run, monkeypatch, tmp_path):
    path = tmp_path / "profile.json"
    monkeypatch.setenv("SCANLAB_PROFILE", str(path))
    path.write_text('{"schema_version": 1, "torn')
    monkeypatch.setattr("scanlab.cli.finished.write", lambda *_: [])
    outcome = run(*TUNE)
    assert outcome.code == 0, outcome.err
    assert "compared without the profile" in outcome.err
    assert Profile.load(path).entries
