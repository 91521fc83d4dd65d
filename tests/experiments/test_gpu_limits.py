"""The experiment on the limits of a GPU, where none is: what it refuses, and the arithmetic of its table."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from scanlab.errors import RejectedError
from scanlab.kernels import triton
from scanlab.problem import ScanProblem

SCRIPT = Path(__file__).parents[2] / "experiments" / "gpu_limits.py"
PROBLEM = ScanProblem(batch=2, dim=8, length=10, state=16)


@pytest.fixture
def experiment(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("gpu_limits")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would measure")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--out", tmp_path / "page"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "none can be used here" in done.stderr
    assert not (tmp_path / "page").exists()


def test_the_floor_is_the_slower_of_bytes_and_exponentials(experiment):
    elements = 2 * 8 * 10
    assert experiment.floor_s(PROBLEM, copy_s=1.0, exponential_s=1.0) == 18 * elements
    assert experiment.floor_s(PROBLEM, copy_s=2.0, exponential_s=1.0) == 2.0 * 16 * elements
    assert experiment.floor_s(PROBLEM.replace(gradients=True), copy_s=1.0, exponential_s=1.0) == 28 * elements
    both = PROBLEM.replace(direction="bidirectional")
    assert experiment.floor_s(both, copy_s=0.0, exponential_s=1.0) == 2 * 18 * elements


def test_candidates_are_legal_and_differ(experiment):
    for problem in (PROBLEM, PROBLEM.replace(gradients=True)):
        drawn = experiment.candidates(problem, 20)
        assert all(triton.backend.space.complete(config, problem, "triton") == config for config in drawn)
        assert len({tuple(config.items()) for config in drawn}) == 20


def test_the_table_holds_shares_of_the_floor_and_images_per_second(experiment):
    scan = {"shape": "a", "run": "triton", "median_s": 2.0, "floor_s": 1.5}
    frame = experiment.table([scan, {"shape": "b", "run": "Vim", "median_s": 0.5, "images": 64}])
    assert frame.share_of_floor[0] == 0.75
    assert frame.images_per_s[1] == 128.0
    assert frame.share_of_floor.isna()[1]
    assert frame.images_per_s.isna()[0]


@pytest.mark.parametrize("gradients", [False, True])
def test_every_implementation_gets_a_row_and_refusals_are_counted(experiment, monkeypatch, gradients):
    def proven(problem, config):
        if config.get("order") == "batch":
            raise RejectedError("refused before it ran")
        return experiment.plain(problem)

    def times_s(calls, repeats=1):
        return np.array([float(call() is not None) for call in calls])

    monkeypatch.setattr(experiment, "proven", proven)
    monkeypatch.setattr(experiment, "times_s", times_s)
    problem = PROBLEM.replace(direction="bidirectional", gradients=gradients)
    default, tuned, plain = experiment.scan_rows("tiny", problem, 6, copy_s=0.0, exponential_s=1e-4)
    assert [default["run"], plain["run"]] == ["triton, default", "plain PyTorch"]
    refused = sum(config["order"] == "batch" for config in experiment.candidates(problem, 6))
    assert refused > 0
    assert str(tuned["run"]).endswith(f", {refused} refused")
    assert all(row["median_s"] == 1.0 for row in (default, tuned, plain))
    assert default["way"] == ("backward" if gradients else "forward")
    assert default["floor_s"] == pytest.approx(1e-4 * 2 * 18 * 160)


def test_the_ops_around_the_scan_get_a_row_beside_pytorch_each_way(experiment, monkeypatch):
    monkeypatch.setattr(experiment, "times_s", lambda calls: np.array([float(call() is not None) for call in calls]))
    rows = experiment.neighbour_rows("tiny", PROBLEM.replace(direction="bidirectional"), copy_s=1.0)
    assert len(rows) == len({(row["run"], row["way"]) for row in rows}) == 8
    floors = {(row["run"].split(",")[0], row["way"]): row["floor_s"] / (4 * 160) for row in rows}
    assert floors == {
        ("convolutions", "forward"): 3,
        ("convolutions", "backward"): 4,
        ("add and norm", "forward"): 2,
        ("add and norm", "backward"): 2,
    }


def test_an_op_that_disagrees_with_pytorch_is_not_timed(experiment, monkeypatch):
    monkeypatch.setattr(experiment, "times_s", lambda calls: np.ones(3))
    add_norm = experiment.mixer.add_norm
    calls = []

    def wrong(*given):
        calls.append(given)
        out, total = add_norm(*given)
        return out, total + len(calls) // 5  # PyTorch is called four times

    monkeypatch.setattr(experiment.mixer, "add_norm", wrong)
    with pytest.raises(AssertionError, match="not close"):
        experiment.neighbour_rows("tiny", PROBLEM, copy_s=1.0)
