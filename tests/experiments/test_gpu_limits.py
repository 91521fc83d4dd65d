"""Experiment on the limits of a GPU, on a machine without one: its refusals, and the arithmetic of its table."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from scanlab.contract.problem import ScanProblem
from scanlab.errors import RejectedError
from scanlab_kernels.selective_scan.triton import backend as triton

SCRIPT = Path(__file__).parents[2] / "experiments" / "gpu_limits.py"
PROBLEM = ScanProblem(batch=2, dim=8, length=10, state=16)


@pytest.fixture
def experiment(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("gpu_limits")


@pytest.fixture
def tuning(experiment):
    """The search as a module."""
    return importlib.import_module("gpu_tuning")


@pytest.fixture
def timing(experiment):
    """The timing as a module."""
    return importlib.import_module("gpu_timing")


class AtOnce:
    """Executor that runs in this process."""

    @staticmethod
    def map(function, *arguments, timeout):
        return map(function, *arguments)


def test_defaults_are_compiled_at_once_and_poor_ones_are_named(tuning, clock, monkeypatch):
    asked = []

    def refusal_of(problem, drawn, default, capability):
        asked.append((problem, drawn, capability))
        return "it spills" if problem.gradients else None

    monkeypatch.setattr(tuning, "refusal_of", refusal_of)
    problems = [PROBLEM, PROBLEM.replace(gradients=True)]
    rows = tuning.compile_defaults(problems, AtOnce)
    assert rows == [{"shape": problems[1].key, "run": "triton, default: it spills"}]
    assert asked == [(each, triton.tuning_of(triton.backend.space.defaults, each), 90) for each in problems]


def test_no_backward_pass_of_a_long_loop_in_pytorch_is_measured(experiment, monkeypatch):
    shapes = {"long": {"batch": 1, "dim": 2, "length": 513}, "short": {"batch": 1, "dim": 2, "length": 512}}
    for name, value in {"SHAPES": shapes, "IMAGES": {}, "DEVICE": "cpu"}.items():
        monkeypatch.setattr(experiment, name, value)
    monkeypatch.setattr(experiment, "attempted", lambda what, measure: [what])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = [row for rows in experiment.measured(1, -1.0, None, (1.0, 1.0)) for row in rows]
    assert [row["shape"] for row in found if row["run"] == "plain PyTorch"] == ["long", "short", "short"]
    assert [row["shape"] for row in found if row["run"] == "triton, default"] == ["long", "short"] * 2


@pytest.fixture
def clock(experiment, tuning, timing, monkeypatch):
    """Make every call take a second on the GPU and half a second on the host."""

    def times_s(calls, most=1):
        taken = np.array([float(call() is not None) for call in calls])
        return timing.Times(taken, taken / 2)

    for module in (experiment, tuning):
        monkeypatch.setattr(module, "times_s", times_s)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    return times_s


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the program measures for minutes")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path):
    lacking = "import sys; sys.modules['optuna'] = None"  # what measures needs nothing that searches
    as_script = "import runpy, vim_vs_deit; runpy.run_path(sys.argv[0], run_name='__main__')"
    argv = f"sys.path.insert(0, {str(SCRIPT.parent)!r}); sys.argv = {[str(SCRIPT), '--out', str(tmp_path / 'page')]}"
    command = [sys.executable, "-c", "; ".join((lacking, argv, as_script))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "none can be used here" in done.stderr
    assert not (tmp_path / "page").exists()


def test_the_floor_is_the_slower_of_bytes_and_exponentials(experiment):
    elements = 2 * 8 * 10
    assert experiment.min_time_s(PROBLEM, copy_s=1.0, exponential_s=1.0) == 18 * elements
    assert experiment.min_time_s(PROBLEM, copy_s=2.0, exponential_s=1.0) == 2.0 * 16 * elements
    assert experiment.min_time_s(PROBLEM.replace(gradients=True), copy_s=1.0, exponential_s=1.0) == 28 * elements
    both = PROBLEM.replace(direction="bidirectional")
    assert experiment.min_time_s(both, copy_s=0.0, exponential_s=1.0) == 2 * 18 * elements


def test_candidates_are_legal_and_differ(tuning):
    for problem in (PROBLEM, PROBLEM.replace(gradients=True)):
        drawn = tuning.candidates(problem, 20)
        assert all(triton.backend.space.complete(config, problem, "triton") == config for config in drawn)
        assert len({tuple(config.items()) for config in drawn}) == 20
        for name, value in triton.backend.space.defaults.items():
            assert (name in triton.FOR_GRADIENTS) == problem.gradients or {config[name] for config in drawn} == {value}


@pytest.mark.parametrize("layout", ["dim_last", "length_last"])
def test_inputs_are_of_the_problem_and_repeat_a_short_sequence(timing, layout):
    problem = PROBLEM.replace(length=200, layout=layout, direction="bidirectional")
    inputs = timing.inputs_of(problem, seed=1)
    assert ScanProblem.of(*inputs, delta_softplus=True, direction="bidirectional") == problem
    for name in ("u", "delta", "z", "B", "C"):
        tensor = getattr(inputs[1], name)
        assert torch.equal(tensor[..., :64], tensor[..., 64:128])
        assert torch.equal(tensor[..., :8], tensor[..., 192:])
        assert torch.equal(tensor[0], tensor[1])
        assert tensor.data_ptr() != getattr(inputs[0], name).data_ptr()
        both = 2 if name in ("B", "C") and layout == "dim_last" else 1  # slices of one projection's output
        assert tensor.untyped_storage().nbytes() == both * tensor.numel() * 4
    assert not torch.equal(inputs[0].u, timing.inputs_of(problem, seed=2)[0].u)


def test_the_table_holds_shares_of_the_floor_and_images_per_second(experiment):
    scan = {"shape": "a", "run": "triton", "median_s": 2.0, "min_time_s": 1.5}
    assert experiment.table([scan]).images_per_s.isna()[0]  # what is written first has no image
    frame = experiment.table([scan, {"shape": "b", "run": "Vim", "median_s": 0.5, "images": 64}])
    assert frame.share_of_min_time[0] == 0.75
    assert frame.images_per_s[1] == 128.0
    assert frame.share_of_min_time.isna()[1]
    assert frame.images_per_s.isna()[0]


def test_scans_are_compared_with_the_official_one_and_models_with_eager_deit(experiment):
    rows = [
        {"shape": "a", "phase": "forward", "run": "triton, default", "median_s": 2.0},
        {"shape": "a", "phase": "forward", "run": "official CUDA", "median_s": 3.0},
        {"shape": "a", "phase": "backward", "run": "triton, default", "median_s": 2.0},
        {"shape": "b", "run": "Vim-small, CUDA graph", "median_s": 0.5, "images": 4},
        {"shape": "b", "run": "Vim-tiny", "median_s": 0.5, "images": 4},
        {"shape": "b", "run": "eager DeiT-small", "median_s": 2.0, "images": 4},
    ]
    frame = experiment.table(rows)
    np.testing.assert_equal(frame.times_as_fast.to_numpy(), [1.5, 1.0, np.nan, 4.0, np.nan, 1.0])
    assert list(experiment.spelled(frame)["times as fast"]) == ["1.50", "1.00", "", "4.00", "", "1.00"]


@pytest.mark.parametrize("gradients", [False, True])
def test_the_fastest_is_found_and_what_is_refused_is_counted(experiment, tuning, clock, monkeypatch, gradients):
    wrong, refusing = ("backward_channels", 10) if gradients else ("unroll", 8)  # history, or the order of programs
    problem = PROBLEM.replace(direction="bidirectional", gradients=gradients)
    default = triton.tuning_of(triton.backend.space.defaults, problem)[refusing]

    def refusal_of(problem, drawn, default, capability):
        assert capability == 90
        return "it spills" if drawn[refusing] != default[refusing] else None

    def verified(problem, config):
        if config[wrong] == 8:
            raise RejectedError("it is wrong")
        return experiment.plain(problem)

    monkeypatch.setattr(tuning, "refusal_of", refusal_of)
    monkeypatch.setattr(tuning, "verified", verified)
    monkeypatch.setattr(experiment, "verified", verified)
    drawn = tuning.candidates(problem, 6)
    refused = sum(triton.tuning_of(each, problem)[refusing] != default or each[wrong] == 8 for each in drawn)
    assert 0 < refused < 6
    (row,) = experiment.tuned_rows("tiny", problem, 6, np.inf, AtOnce, floor=0.5)
    assert str(row["run"]).endswith(f"; {7 - refused} run, {refused} refused")
    assert row["phase"] == ("backward" if gradients else "forward")
    assert (row["median_s"], row["host_s"], row["min_time_s"]) == (1.0, 0.5, 0.5)
    assert tuning.tuned(problem, 6, -np.inf, AtOnce)[1] == "0 run, 0 refused"


def test_a_crash_becomes_a_row_and_a_lost_gpu_ends_the_run(experiment, monkeypatch):
    def broken():
        raise ValueError("too wide")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert experiment.attempted({"shape": "a", "run": "triton"}, broken) == [
        {"shape": "a", "run": "triton: ValueError"}
    ]
    assert experiment.attempted({"shape": "a", "run": "triton"}, lambda: [{"run": "b"}]) == [{"run": "b"}]
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    with pytest.raises(ValueError, match="too wide"):
        experiment.attempted({"shape": "a", "run": "triton"}, broken)


def test_the_ops_around_the_scan_get_a_row_beside_pytorch_each_way(experiment, clock):
    rows = experiment.neighbour_rows("tiny", PROBLEM.replace(direction="bidirectional"), copy_s=1.0)
    assert len(rows) == len({(row["run"], row["phase"]) for row in rows}) == 8
    floors = {(row["run"].split(",")[0], row["phase"]): row["min_time_s"] / (4 * 160) for row in rows}
    assert floors == {
        ("convolutions", "forward"): 3,
        ("convolutions", "backward"): 4,
        ("add and norm", "forward"): 2,
        ("add and norm", "backward"): 2,
    }


def test_an_op_that_disagrees_with_pytorch_is_not_timed(experiment, clock, monkeypatch):
    add_norm = experiment.mixer.add_norm
    calls = []

    def wrong(*given):
        calls.append(given)
        out, total = add_norm(*given)
        return out, total + len(calls) // 8  # PyTorch is called seven times

    monkeypatch.setattr(experiment.mixer, "add_norm", wrong)
    with pytest.raises(AssertionError, match="not close"):
        experiment.neighbour_rows("tiny", PROBLEM, copy_s=1.0)
