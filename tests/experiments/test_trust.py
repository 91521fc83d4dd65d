"""The experiment on trust: every part at a small size, and that a broken promise is seen."""

from __future__ import annotations

import importlib
import random
from pathlib import Path

import pandas as pd
import pytest

from scanlab.bench.samples import Block
from scanlab.bench.store import TrialStore
from scanlab.bench.worker import Heat, Lane

SCRIPTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def trust(monkeypatch):
    """The experiment, as it is when it runs as a script."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("trust")


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


def lanes(shift: float, rounds: int = 40) -> Heat:
    """A heat of three that are alike, but for what the first is slower by."""
    rng = random.Random(1)

    def blocks(factor: float) -> tuple[Block, ...]:
        taken = [round(1e6 * factor * (1 + 0.01 * rng.random())) for _ in range(rounds)]
        return tuple(Block((ns,), (1_000_000,), "ca", round=number) for number, ns in enumerate(taken))

    return Heat((Lane(blocks(1 + shift)), Lane(blocks(1.0))), 1, blocks(1.0), 1, rounds)


def test_a_race_drawn_from_noise_is_one_of_equals_unless_one_is_slower(trust):
    alike, apart = lanes(0.0), lanes(0.3)
    assert sum(trust.told_apart([trust.drawn(alike, random.Random(seed))]) for seed in range(20)) <= 2
    found = [trust.drawn(apart, random.Random(seed)) for seed in range(20)]
    assert any(trust.told_apart([heat]) for heat in found)
    assert all(heat.rounds >= 8 for heat in found)


def test_two_tunings_agree_where_one_declares_the_other_a_tie(trust):
    one, other = {"winner": "a", "tied": ["b"]}, {"winner": "b", "tied": []}
    assert trust.agree(one, other)
    assert trust.agree(other, one)
    assert trust.agree(one, dict(one))
    assert not trust.agree(other, {"winner": "c", "tied": ["a"]})


def test_what_is_known_is_on_the_page_and_a_claim_that_fails_ends_with_code_1(trust, tmp_path, monkeypatch):
    held = trust.Claim("held", 3, 0, 0, 1.0, "well")
    row = {"seed": 0, "winner": "a", "phase": "race", "ms": 1.0, "speedup": 2.0, "tried": 3, "took_s": 4.0}
    rows = [(held._replace(claim="tunings"), row | {"tied": ["b"], "notices": []})]
    for name in ("kills_of_a_writer", "races_run", "races_drawn"):
        monkeypatch.setattr(trust, name, lambda *given, name=name: held._replace(claim=name))
    monkeypatch.setattr(trust, "kills_of_a_tuner", lambda *given: held._replace(claim="tuner", wrong=1))
    monkeypatch.setattr(trust, "tunings_beside_a_neighbour", lambda *given: iter(rows))
    out = tmp_path / "trust"
    with pytest.raises(SystemExit, match="the claim does not hold: tuner"):
        trust.main(out=out, kills=2, races=2, real=2, tunings=1, budget="1s")
    frame = pd.read_csv(out / "trust.csv")
    assert list(frame.holds) == [True, False, True, True, True]
    assert "| a " in (out / "trust.md").read_text()
    with pytest.raises(SystemExit, match="the claim does not hold: tuner"):  # what was not asked for stays
        trust.main(parts="races", out=out, races=2, real=2)
    assert pd.read_csv(out / "trust.csv").claim.tolist() == frame.claim.tolist()
    assert "| a " in (out / "trust.md").read_text()
    with pytest.raises(SystemExit, match="--parts race: must be some of kills, races, tunings"):
        trust.main(parts="race", out=out)
