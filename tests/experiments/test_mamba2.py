"""The experiment on Mamba-2 layers runs from end to end at a small size, and its page holds what it measured."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pandas as pd
import pytest

from scanlab.contract.cpu import torch_threads
from scanlab.errors import InputError
from scanlab.runtime import dispatch

pytest.importorskip("transformers", minversion="5.16")
SCRIPTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def experiment(monkeypatch):
    """Import the experiment with two small layers; nothing is compiled for it."""
    monkeypatch.setenv("SCANLAB_BACKEND", "ssd_chunked")
    dispatch.clear()
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("mamba2")
    small = {"hidden": 16, "heads": 4, "head_dim": 8, "state": 8}
    monkeypatch.setattr(
        module, "LAYERS", {"one": module.Shape(groups=1, **small), "two": module.Shape(groups=2, **small)}
    )
    with torch_threads(1):
        yield module
    sys.modules.pop("mamba2")
    dispatch.clear()


def test_parts_that_are_measured_later_join_the_page(experiment, tmp_path):
    experiment.main(layer="all", dtype="float32", part="prompt", limit_s=0.0, out=tmp_path)
    experiment.main(layer="two", dtype="float32", part="token", limit_s=0.0, out=tmp_path)
    experiment.main(layer="two", dtype="bfloat16", part="training", limit_s=0.0, out=tmp_path)
    (page,), (numbers,) = tmp_path.glob("*.md"), tmp_path.glob("*.csv")
    frame = pd.read_csv(numbers)
    assert set(frame.implementation) == {"scanlab", "transformers", "mamba_ssm", "projections"}
    assert (frame.value > 0).all()
    assert not frame.duplicated(experiment.KEYS).any()
    text = page.read_text()
    for heading in ("## one, float32", "## two, float32", "## two, bfloat16"):
        assert heading in text
    assert text.count("prompt of 4096") == 2


def test_an_unknown_part_is_refused(experiment, tmp_path):
    with pytest.raises(InputError, match="--part tokens: must be all, or one of token, training, prompt, memory"):
        experiment.main(part="tokens", out=tmp_path)
