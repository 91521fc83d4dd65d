"""The experiment on transformers' Mamba from end to end, on a model of two layers."""

from __future__ import annotations

import importlib

import pandas as pd
import pytest
import torch

from scanlab.contract.cpu import torch_threads
from scanlab.runtime import dispatch

from .test_experiments import SCRIPTS

pytest.importorskip("transformers")


@pytest.fixture
def experiment(monkeypatch):
    """The experiment as it is when it runs as a script, at a small size."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setenv("SCANLAB_BACKEND", "chunked:threads=1")
    dispatch.clear()
    module = importlib.import_module("transformers_mamba")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 50}
    for name, value in {"SIZES": sizes, "LENGTHS": (9,), "LIMIT_S": 0.0, "GENERATED": 3}.items():
        monkeypatch.setattr(module, name, value)
    with torch_threads(1):
        yield module
    dispatch.clear()


def test_the_table_has_every_ratio(experiment, tmp_path, capsys):
    out = tmp_path / "transformers_mamba"
    experiment.main(rounds=3, out=out)
    frame = pd.read_csv(out / "transformers_mamba.csv")
    named = ["prefill of 9", "tokens/s", "a token", "a token", "prefill of 9"]
    assert list(frame.ratio.str.split(":").str[0]) == named
    assert (frame[["quartile1", "median", "quartile3", "of_fastest", "patched_ms"]] > 0).all(axis=None)
    assert (frame["rounds"] == 3).all()
    page = (out / "transformers_mamba.md").read_text()
    assert "scan by chunked" in page
    assert "at most 1.3" in page
    assert "prefill of 9" in capsys.readouterr().out


def test_other_tokens_are_no_result(experiment, monkeypatch):
    patched = experiment.patch

    def broken(model):
        patched(model)
        with torch.no_grad():
            model.lm_head.weight = torch.nn.Parameter(-model.lm_head.weight)

    monkeypatch.setattr(experiment, "patch", broken)
    with pytest.raises(SystemExit, match="generates other tokens"):
        experiment.models()
