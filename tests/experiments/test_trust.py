"""The experiment on trust: every part at a small size, and that a broken promise is seen."""

from __future__ import annotations

import importlib
import random
from pathlib import Path

import pandas as pd
import pytest

from scanlab.bench.samples import Block
from scanlab.bench.store import TrialStore
from scanlab.contract.problem import ScanProblem

SCRIPTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def trust(monkeypatch):
    """The experiment, as it is when it runs as a script."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("trust")


@pytest.mark.timing
def test_a_writer_and_a_tuner_are_killed_and_lose_nothing(trust, tmp_path):
    written = trust.kills_of_a_writer(2, tmp_path / "writer")
    assert (written.tried, written.wrong, written.holds) == (2, 0, True)
    tuned = trust.kills_of_a_tuner(1, tmp_path / "tuner")
    assert (tuned.tried, tuned.wrong, tuned.holds) == (1, 0, True)
    assert not tuned.said.startswith("0 trials")


def test_a_record_that_is_not_there_is_a_broken_promise(trust, tmp_path, monkeypatch):
    load = TrialStore.load
    monkeypatch.setattr(TrialStore, "load", lambda self: load(self)._replace(trials=()))
    monkeypatch.setattr(trust, "killed", lambda *given: ["0123456789abcdef"])
    claim = trust.kills_of_a_writer(1, tmp_path)
    assert (claim.wrong, claim.holds) == (1, False)


def noise(shift: float, rounds: int = 40) -> list[list[Block]]:
    """The blocks of three that are alike, but for what the first is slower by."""
    rng = random.Random(1)

    def blocks(factor: float) -> list[Block]:
        taken = [round(1e6 * factor * (1 + 0.01 * rng.random())) for _ in range(rounds)]
        return [Block((ns,), (1_000_000,), "cb", round=number) for number, ns in enumerate(taken)]

    return [blocks(1 + shift), blocks(1.0), blocks(1.0)]


def test_a_comparison_drawn_from_noise_is_one_of_equals_unless_one_is_slower(trust):
    assert sum(trust.differs(noise(0.0), random.Random(seed)) for seed in range(20)) <= 2
    assert any(trust.differs(noise(0.3), random.Random(seed)) for seed in range(20))


def test_artefacts_choose_nothing_and_cut_short_tunings_replace_nothing(trust, tmp_path):
    assert trust.artefacts(3, tmp_path / "artefacts").holds
    assert trust.cut_short(6, tmp_path / "cut-short").holds


def test_a_planted_fault_is_caught_by_verification_and_by_the_contract_test(trust):
    faults = importlib.import_module("trust_faults")
    broken = faults.backend_with(faults.FAULTS["wrong past the first tile of 64 channels"], gradients=False)
    for found in (faults.first_wrong(broken), faults.first_failure(broken)):
        assert ScanProblem.parse(found).dim > faults.FIRST_TILE


def test_two_tunings_agree_on_one_winner_or_on_a_tie_within_the_noise(trust):
    one = {"winner": "a", "tied": ["b"], "speedup": 60.0, "noise_floor": 0.03}
    near, far = one | {"winner": "b", "tied": [], "speedup": 61.0}, one | {"winner": "b", "tied": [], "speedup": 1.2}
    assert trust.agree(one, near)
    assert trust.agree(near, one)
    assert trust.agree(one, dict(one))
    assert not trust.agree(one, far)
    assert not trust.agree(one, near | {"winner": "c"})
    assert not trust.agree(one | {"winner": "none"}, one | {"winner": "none"})


def test_what_is_known_is_on_the_page_and_a_claim_that_fails_ends_with_code_1(trust, tmp_path, monkeypatch):
    held = trust.Claim("held", 3, 0, 0, 1.0, "well")
    row = {"seed": 0, "winner": "a", "phase": "race", "ms": 1.0, "speedup": 2.0, "tried": 3, "took_s": 4.0}
    rows = [(held._replace(claim="tunings"), row | {"tied": ["b"], "notices": []})]
    for name in ("kills_of_a_writer", "races_run", "races_drawn", "artefacts", "cut_short"):
        monkeypatch.setattr(trust, name, lambda *given, name=name: held._replace(claim=name))
    monkeypatch.setattr(trust, "kills_of_a_tuner", lambda *given: held._replace(claim="tuner", wrong=1))
    monkeypatch.setattr(trust, "tunings_beside_a_neighbour", lambda *given: iter(rows))
    caught = [{"fault": "wrong at odd lengths", "claims": "", "verify": "p", "contract test": "p"}]
    monkeypatch.setattr(trust, "planted_faults", lambda: (held._replace(claim="faults"), caught))
    out = tmp_path / "trust"
    with pytest.raises(SystemExit, match="the claim does not hold: tuner"):
        trust.main(out=out, kills=2, races=2, real=2, simulations=1, tunings=1, budget="1s")
    frame = pd.read_csv(out / "trust.csv")
    assert list(frame.holds) == [True, False, True, True, True, True, True, True]
    assert "| a " in (out / "trust.md").read_text()
    with pytest.raises(SystemExit, match="the claim does not hold: tuner"):  # what was not asked for stays
        trust.main(parts="races", out=out, races=2, real=2)
    assert pd.read_csv(out / "trust.csv").claim.tolist() == frame.claim.tolist()
    assert "| a " in (out / "trust.md").read_text()
    with pytest.raises(SystemExit, match="--parts race: must be some of kills, races, simulated, faults, tunings"):
        trust.main(parts="race", out=out)
