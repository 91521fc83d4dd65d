"""The experiments of the drop-in run from end to end at a small size, and their pages hold what they measured."""

from __future__ import annotations

import sys

import pytest

from helpers.official_names import untouched
from helpers.records import block, measurement, trial
from scanlab.bench.store import TrialStore
from scanlab.contract import registry
from scanlab.contract.problem import ScanProblem
from scanlab.runtime import defaults

from .test_experiments import page_of, script  # noqa: F401  # a fixture is used by its name


def test_the_drop_in_beside_the_reference(script, tmp_path, monkeypatch):  # noqa: F811
    experiment = script("drop_in")
    for name, value in (("FEWEST", dict.fromkeys(experiment.TASKS, 2)), ("LIMIT_S", 0.0)):
        monkeypatch.setattr(experiment, name, value)
    with untouched():
        experiment.main(size=32, depth=2, batch=2, out=tmp_path / "drop_in")
        sys.modules.pop("vim_by_name")
    text, frame = page_of(tmp_path / "drop_in")
    assert set(frame.task) == set(experiment.TASKS)
    assert (frame[frame.code == experiment.REFERENCE].ratio == 1.0).all()
    assert len(frame) == 6
    assert "chunked" in text


def test_models_that_disagree_are_not_timed(script, tmp_path, monkeypatch):  # noqa: F811
    experiment = script("drop_in")
    monkeypatch.setattr(experiment, "TOLERANCE", 0.0)
    with untouched(), pytest.raises(SystemExit, match="of the largest logit from the reference"):
        experiment.main(size=32, depth=2, batch=2, out=tmp_path)
    sys.modules.pop("vim_by_name")


def test_the_heuristics_are_the_best_of_each_backend_in_the_last_phase_it_reached(script, tmp_path, monkeypatch):  # noqa: F811
    experiment = script("heuristics")
    monkeypatch.setattr(experiment, "ROOT", tmp_path)
    record = TrialStore(tmp_path / "seen")
    record.prepare()
    cpus = trial().machine.silicon.usable_cpus
    fast, slow = (measurement(block([taken] * 2, [4_000_000] * 2)) for taken in (1_000_000, 2_000_000))
    for each in (
        trial(backend="two_phase", config={"threads": cpus}, phase="comparison", measurement=slow),
        trial(backend="chunked", config={"chunk": 64, "threads": cpus}, phase="comparison", measurement=fast),
        trial(backend="chunked", config={"chunk": 32, "threads": cpus}, phase="comparison", measurement=slow),
        trial(backend="two_phase", config={"threads": cpus}, phase="search", measurement=fast),
        trial(backend="compiled", config={}, phase="comparison", measurement=fast),
        trial(backend="gone", config={}, phase="comparison", measurement=fast),
        trial(problem=ScanProblem(batch=2, dim=4, length=8), backend="chunked"),
    ):
        record.append(each)
    out = tmp_path / "heuristics.toml"
    for _ in range(2):  # a second time replaces what is there
        experiment.main([tmp_path / "seen"], out=out, page=tmp_path / "page")
        (found,) = defaults.read.__wrapped__(out)
        assert found.problem == trial().problem
        assert found.source == "seen"
        assert [(one.backend, one.config, one.speedup) for one in found.entries] == [
            ("chunked", {"chunk": 64}, 4.0),
            ("two_phase", {}, 2.0),
        ]


def test_among_what_is_about_as_fast_the_heuristics_take_what_departs_least_from_the_defaults(script):  # noqa: F811
    experiment = script("heuristics")
    defaults = registry.get("native").space.defaults

    def timed(taken_ns, **config):
        reading = measurement(block([taken_ns] * 2, [4_000_000] * 2))
        return trial(backend="native", config=defaults | config, phase="comparison", measurement=reading)

    usual, slower, unusual = timed(1_030_000), timed(1_080_000), timed(1_000_000, exp="fast")
    assert experiment.best_of([unusual, usual]) is usual
    assert experiment.best_of([unusual, slower]) is unusual
