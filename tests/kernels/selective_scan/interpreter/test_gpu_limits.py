"""Experiment on the limits of a GPU from start to end, with a fake clock and a fake GPU."""

from __future__ import annotations

import functools
import importlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import torch

from scanlab.models.vision_mamba import VisionMamba
from scanlab.runtime import implementations as serving

EXPERIMENTS = Path(__file__).parents[4] / "experiments"


class Event:
    """Fake event; any two are a millisecond apart."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        """Record nothing."""

    def synchronize(self) -> None:
        """Wait for nothing."""

    def elapsed_time(self, other: Event) -> float:
        """Return 1 ms."""
        return 1.0


@pytest.fixture
def experiment(monkeypatch):
    """The script as a module, at sizes for the interpreter, on a CPU in the place of a GPU."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    names = ("gpu_limits", "gpu_tuning", "gpu_timing", "gpu_ceiling", "vim_vs_deit")
    limits, tuning, timing, ceiling, models = (importlib.import_module(name) for name in names)
    for name, value in {
        "Event": Event,
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "get_device_capability": lambda: (9, 0),
        "get_device_name": lambda: "made up",
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(limits, "unusable", lambda: None)
    monkeypatch.setattr(tuning, "refusal_of", lambda problem, drawn, default, capability: "slow")
    monkeypatch.setattr(limits, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(1))
    monkeypatch.setattr(limits, "DEVICE", "cpu")
    monkeypatch.setattr(limits, "captured", lambda call: call)
    both = {"batch": 1, "dim": 2, "length": 1, "state": 2, "direction": "bidirectional"}
    monkeypatch.setattr(limits, "SHAPES", {"both": both})
    monkeypatch.setattr(limits, "IMAGES", {16: 1})
    monkeypatch.setattr(limits, "IMAGE_MODELS", ("Vim-tiny", "eager DeiT-none"))
    small = functools.partial(VisionMamba, patch_size=16, embed_dim=8, depth=1, d_state=2, num_classes=3)
    monkeypatch.setitem(models.RELEASED, "vim_tiny", small)
    for module in (limits, tuning):
        monkeypatch.setattr(module, "COPIES", 1)
    monkeypatch.setattr(timing, "copy_call", lambda: (lambda: None, 2))
    monkeypatch.setattr(timing, "MAX_CALLS", 1)
    monkeypatch.setattr(ceiling, "exponential_call", lambda: (lambda: None, 4))
    monkeypatch.setenv("SCANLAB_MIXER", "triton")
    serving.clear()
    yield limits
    serving.clear()


def test_it_measures_every_shape_and_writes_the_page(experiment, tmp_path, capsys):
    experiment.main(drawn=1, minutes=2.0, out=tmp_path / "page")
    said = capsys.readouterr().out
    frame = pd.read_csv(tmp_path / "page" / "page.csv")
    refused = frame[frame.run == "triton, default: slow"]["shape"]
    assert [("dim=2" in shape, "gradients" in shape) for shape in refused] == [(True, False), (True, True)]
    frame = frame.drop(refused.index)
    assert set(frame["shape"]) == {"both", "16 x 16, batch 1"}
    runs = frame.run.str.partition(":")[0]
    assert runs.value_counts().to_dict() == {
        "triton, default": 2,
        "plain PyTorch": 2,
        "triton, tuned": 2,
        **{f"{noun}, {kind}": 2 for noun in ("convolutions", "add and norm") for kind in ("plain PyTorch", "triton")},
        "Vim-tiny": 1,
        "Vim-tiny, CUDA graph": 1,
        "eager DeiT-none": 2,
    }
    failed = frame[frame.median_s.isna()]
    assert list(failed.run) == ["eager DeiT-none: KeyError"] * 2
    assert "refused {" in said
    assert frame.images_per_s.dropna().tolist() == [1000.0] * 2
    assert (frame.share_of_min_time.dropna() > 0).all()
    assert "made up" in (tmp_path / "page" / "page.md").read_text()


def test_the_interpreter_measures_nothing(experiment):
    assert importlib.reload(experiment).unusable() == "the interpreter is switched on; unset TRITON_INTERPRET."


def test_without_time_nothing_is_tuned(experiment, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(experiment, "SHAPES", {"one": experiment.SHAPES["both"] | {"direction": "forward"}})
    monkeypatch.setattr(experiment, "IMAGES", {})
    experiment.main(drawn=2, minutes=1e-5, out=tmp_path / "page")
    assert "no time is left to tune one" in capsys.readouterr().out
    runs = pd.read_csv(tmp_path / "page" / "page.csv").run
    assert runs.str.partition(":")[0].value_counts().to_dict() == {"triton, default": 4, "plain PyTorch": 2}
