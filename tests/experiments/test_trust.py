"""The experiment on trust: every part at a small size, and that a broken promise is seen."""

from __future__ import annotations

import importlib
import json
import random
from pathlib import Path

import pandas as pd
import pytest

from helpers.simulated import simulated
from scanlab.bench.context import Candidate
from scanlab.bench.samples import Block
from scanlab.bench.store import TrialStore
from scanlab.contract import registry
from scanlab.contract.evidence import EvidenceRank
from scanlab.contract.problem import ScanProblem

SCRIPTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def script(monkeypatch):
    """Import a file of the experiment, as it is when the experiment runs as a script."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


@pytest.mark.timing
def test_a_writer_and_a_tuner_are_killed_and_lose_nothing(script, tmp_path):
    kills = script("trust_kills")
    written = kills.kills_of_a_writer(2, tmp_path / "writer")
    assert (written.tried, written.wrong, written.holds) == (2, 0, True)
    tuned = kills.kills_of_a_tuner(1, tmp_path / "tuner")
    assert (tuned.tried, tuned.wrong, tuned.holds) == (1, 0, True)
    assert not tuned.said.startswith("0 trials")


def test_a_record_that_is_not_there_is_a_broken_promise(script, tmp_path, monkeypatch):
    kills = script("trust_kills")
    load = TrialStore.load
    monkeypatch.setattr(TrialStore, "load", lambda self: load(self)._replace(trials=()))
    monkeypatch.setattr(kills, "killed", lambda *given: ["0123456789abcdef"])
    claim = kills.kills_of_a_writer(1, tmp_path)
    assert (claim.wrong, claim.holds) == (1, False)


def noise(shift: float, rounds: int = 40) -> list[list[Block]]:
    """The blocks of three that are alike, but for what the first is slower by."""
    rng = random.Random(1)

    def blocks(factor: float) -> list[Block]:
        taken = [round(1e6 * factor * (1 + 0.01 * rng.random())) for _ in range(rounds)]
        return [Block((ns,), (1_000_000,), "cb", round=number) for number, ns in enumerate(taken)]

    return [blocks(1 + shift), blocks(1.0), blocks(1.0)]


def test_a_comparison_drawn_from_noise_is_one_of_equals_unless_one_is_slower(script):
    differs = script("trust_noise").differs
    assert sum(differs(noise(0.0), random.Random(seed)) for seed in range(20)) <= 2
    assert any(differs(noise(0.3), random.Random(seed)) for seed in range(20))


def test_a_machine_that_changes_unseen_leads_to_no_choice_slower_than_the_defaults(script, tmp_path):
    claim = script("trust_changes").changing(8, tmp_path)
    assert (claim.tried, claim.holds) == (8, True)


def test_artefacts_choose_nothing_and_cut_short_tunings_lower_no_rank(script, tmp_path):
    experiment = script("trust_simulated")
    assert experiment.artefacts(3, tmp_path / "artefacts").holds
    claim = experiment.cut_short(3, tmp_path / "cut-short")
    assert claim.holds
    assert claim.tried == 12


def test_a_deployment_that_lowers_a_rank_is_a_broken_promise(script, tmp_path, monkeypatch):
    experiment = script("trust_simulated")
    monkeypatch.setattr(EvidenceRank, "may_replace", lambda self, other: True)
    monkeypatch.setattr(experiment, "deployed_after_kills", lambda *given: experiment.CutShort(0, 0, 0, 0))

    def without_hold_out(seed):
        monkeypatch.setattr("scanlab.bench.simulated_worker.SimulatedWorker.isolated", False)
        return lambda event: None

    monkeypatch.setattr(experiment, "interrupting", without_hold_out)
    assert not experiment.cut_short(3, tmp_path).holds


def test_a_planted_fault_is_caught_by_verification_and_by_the_contract_test(script):
    faults = script("trust_faults")
    broken = faults.backend_with(faults.FAULTS["wrong past the first tile of 64 channels"], gradients=False)
    assert ScanProblem.parse(faults.first_wrong(broken)).dim > faults.FIRST_TILE
    test, problem = faults.first_failure(broken).split(": ")
    assert test == "agrees_with_the_reference"
    assert ScanProblem.parse(problem).dim > faults.FIRST_TILE


@pytest.mark.parametrize("fault", ["wrong where B and C are strided", "race of two threads"])
def test_faults_of_strides_and_of_some_calls_are_caught(script, fault):
    faults = script("trust_faults")
    broken = faults.backend_with(faults.FAULTS[fault], gradients=False)
    assert faults.first_wrong(broken)
    assert faults.first_failure(broken)


def test_a_tuning_that_ran_before_does_not_run_again(script, tmp_path, monkeypatch):
    tunings, row = script("trust_tunings"), {"kind": "with cold caches", "seed": 0, "backend": "native"}
    monkeypatch.delattr(tunings.subprocess, "run")
    (tmp_path / "row.json").write_text(json.dumps(row))
    assert tunings.tuned("with cold caches", 0, "4m", tmp_path) == row


def test_a_choice_is_worse_where_it_is_shown_to_be_slower_than_the_defaults(script, tmp_path):
    tunings = script("trust_tunings")
    chunked = registry.get("chunked")
    slow, default, fast = (Candidate(chunked, {"chunk": chunk, "threads": 1}) for chunk in (16, 32, 64))
    comparer, _ = simulated(tmp_path, time_ms=lambda each: 32.0 / each.config["chunk"])
    compared = comparer.compare([default, slow, fast], 60.0, untuned=default)
    rows = [tunings.against_defaults({}, each, compared, default) for each in (slow, fast, default, None)]
    assert [row["worse"] for row in rows] == [True, False, False, False]
    assert [row["over_defaults"] for row in rows] == pytest.approx([2.0, 0.5, 1.0, 1.0], rel=0.1)


def test_what_is_known_is_on_the_page_and_a_claim_that_fails_ends_with_code_1(script, tmp_path, monkeypatch):
    trust = script("trust")
    held = trust.Claim("held", 3, 0, 0, 1.0, "well")
    rows = [{"kind": "beside a neighbour", "seed": 0, "backend": "a", "over_defaults": 0.9}]
    for name in ("kills_of_a_writer", "comparisons_run", "comparisons_drawn", "artefacts", "changing", "cut_short"):
        monkeypatch.setattr(trust, name, lambda *given, name=name: held._replace(claim=name))
    monkeypatch.setattr(trust, "kills_of_a_fleet", lambda *given: held._replace(claim="fleet"))
    monkeypatch.setattr(trust, "kills_of_a_tuner", lambda *given: held._replace(claim="tuner", wrong=1))
    monkeypatch.setattr(trust, "tunings_held", lambda *given: iter([(held._replace(claim="tunings"), rows)]))
    caught = [{"fault": "wrong at odd lengths", "claims": "", "verify": "p", "contract test": "p"}]
    monkeypatch.setattr(trust.trust_faults, "planted", lambda: (held._replace(claim="faults"), caught))
    out = tmp_path / "trust"
    with pytest.raises(SystemExit, match="the claim does not hold: tuner"):
        trust.main(out=out, kills=2, drawn=2, real=2, simulations=1, tunings=1, budget="1s")
    frame = pd.read_csv(out / "trust.csv")
    assert list(frame.holds) == [True, False] + [True] * 8
    page = (out / "trust.md").read_text()
    assert "| a " in page
    with pytest.raises(SystemExit, match="the claim does not hold: tuner"):  # what was not asked for stays
        trust.main(parts="comparisons", out=out, drawn=2, real=2)
    assert pd.read_csv(out / "trust.csv").claim.tolist() == frame.claim.tolist()
    assert "wrong at odd lengths" in (out / "trust.md").read_text()
    with pytest.raises(
        SystemExit, match="--parts race: must be some of kills, fleet, comparisons, simulated, faults, tunings"
    ):
        trust.main(parts="race", out=out)
