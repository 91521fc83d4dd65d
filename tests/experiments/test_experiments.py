"""Every experiment runs from end to end at a small size, and its page holds what it measured."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from helpers.official_names import untouched
from scanlab.contract.cpu import torch_threads
from scanlab.models.digits import Digits, digits_test_set
from scanlab.models.vision_mamba import VisionMamba
from scanlab.runtime import dispatch
from scanlab_kernels.linear import onednn

SCRIPTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def script(monkeypatch):
    """Import an experiment by name, as it is when it runs as a script; nothing is compiled for it."""
    monkeypatch.setenv("SCANLAB_BACKEND", "chunked:threads=1")
    dispatch.clear()
    monkeypatch.syspath_prepend(str(SCRIPTS))
    with torch_threads(1):
        yield importlib.import_module
    dispatch.clear()


def page_of(folder: Path, name: str | None = None) -> tuple[str, pd.DataFrame]:
    """The text and the numbers in `folder`; every picture that the text shows is there."""
    name = name or folder.name
    text = (folder / f"{name}.md").read_text()
    for line in text.splitlines():
        if line.startswith("!["):
            assert (folder / line.partition("(")[2].rstrip(")")).stat().st_size > 1000
    return text, pd.read_csv(folder / f"{name}.csv")


def test_training_lowers_the_loss_and_spares_the_weights_where_the_claim_fails(script, tmp_path, monkeypatch):
    experiment = script("train_digits")
    few = Digits(*(part[:64] for part in digits_test_set()))
    monkeypatch.setattr(experiment, "digits_split", lambda: (few, few))
    weights, out = tmp_path / "digits.safetensors", tmp_path / "train_digits"
    with pytest.raises(SystemExit, match="the claim does not hold"):
        experiment.main(backend="chunked:threads=1", epochs=2, out=out, weights=weights)
    text, curve = page_of(out)
    assert curve.train_loss.iloc[1] < curve.train_loss.iloc[0]
    assert not weights.exists()
    assert "chunked" in text


def test_vim_beside_deit(script, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    experiment = script("vim_vs_deit")
    models = "Vim-tiny,SDPA DeiT-tiny"
    monkeypatch.setattr(experiment, "FEWEST", 1)
    monkeypatch.setattr(experiment, "LIMIT_S", 0.0)
    monkeypatch.setattr(experiment.common, "fresh_peak_bytes", lambda ready, name, *rest: float(len(name)))
    out = tmp_path / "vim_vs_deit"
    experiment.main(sizes="32", models=models, out=out, backend="chunked:threads=1")
    experiment.main(sizes="48", models=models, out=out, backend="chunked:threads=1")
    text, frame = page_of(out, experiment.page_name("float32"))
    assert sorted(set(frame["size"])) == [32, 48]
    assert (frame[frame.model == "Vim-tiny"].over_vim == 1.0).all()
    assert set(frame.peak_bytes) == {8.0, 14.0}
    assert "| Vim-tiny beside SDPA DeiT-tiny at 48" in text


def test_without_transformers_vim_vs_deit_says_what_to_install(script, monkeypatch, tmp_path):
    experiment = script("vim_vs_deit")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install 'transformers>=5'"):
        experiment.main(out=tmp_path)


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({224: 0.5, 448: 2.0}, "317"),
        ({224: 0.5, 448: 0.9}, "not up to 448"),
        ({224: 1.5, 448: 2.0}, "below 224"),
    ],
)
def test_where_curves_cross(script, over, said):
    assert script("common").crossing(pd.Series(over)) == said


def test_scans_beside_attention(script, tmp_path, monkeypatch):
    experiment = script("scan_vs_attention")
    monkeypatch.setattr(experiment, "LENGTHS", (64,))
    monkeypatch.setattr(experiment, "LIMIT_S", 0.0)
    out = tmp_path / "scan_vs_attention"
    experiment.main(out=out)
    _, frame = page_of(out)
    assert sorted(frame.line) == ["SDPA", "best", "reference"]
    assert (frame.median_s > 0).all()


def test_a_line_ends_before_a_point_that_takes_too_long_or_too_much(script):
    fits = script("scan_vs_attention").fits
    assert fits([], 256, point_s=1.0)
    assert fits([{"length": 128, "median_s": 4.0, "peak_bytes": 1}], 256, point_s=17.0)
    assert not fits([{"length": 128, "median_s": 4.0, "peak_bytes": 1}], 256, point_s=15.0)
    assert not fits([{"length": 128, "median_s": 4.0, "peak_bytes": 1 << 50}], 256, point_s=17.0)


def test_convolution_and_recurrence_agree(script, tmp_path, monkeypatch):
    experiment = script("lti_equivalence")
    for name, value in (("LENGTHS", (64, 256)), ("DIM", 8), ("LIMIT_S", 0.0)):
        monkeypatch.setattr(experiment, name, value)
    out = tmp_path / "lti_equivalence"
    experiment.main(out=out)
    _, frame = page_of(out)
    assert (frame["float64 convolution error"] < 1e-13).all()
    for name in ("recurrence", "convolution", "recurrence, reference loop"):
        assert (frame[f"{name} error"] < 1e-6).all()


def test_step_maps_are_the_steps_of_the_patches(script, tmp_path):
    experiment = script("selectivity")
    experiment.main(size=64, out=tmp_path / "selectivity")
    page_of(tmp_path / "selectivity")
    model = experiment.digits_model()
    with torch.no_grad():
        for layer in model.layers:
            layer.mixer.dt_proj.weight.zero_()
            layer.mixer.dt_proj.bias.fill_(0.5)
    maps = experiment.step_maps(model, torch.zeros(2, 1, 8, 8))
    assert maps.shape == (4, 2, 2, 7, 7)
    assert maps[:, 0] == pytest.approx(float(torch.nn.functional.softplus(torch.tensor(0.5))))


def test_a_process_that_dies_is_a_reason_and_not_an_end(script):
    common = script("common")
    assert common.in_fresh_process(os.getpid) != os.getpid()
    assert common.in_fresh_process(os._exit, 3) == "its process ended with status 3"


def test_bfloat16_beside_float32(script, tmp_path, monkeypatch):
    experiment = script("bfloat16")
    few = Digits(*(part[:16] for part in digits_test_set()))
    monkeypatch.setattr(experiment, "digits_test_set", lambda: few)
    monkeypatch.setattr(experiment, "LIMIT_S", 0.0)
    monkeypatch.setattr(experiment, "RELEASED", {"small": lambda scan: small_vim(scan)})
    out = tmp_path / "bfloat16"
    experiment.main(count=3, models="small", backend="chunked:threads=1", out=out)
    text, frame = page_of(out)
    assert list(frame.model) == ["digits, trained", "small"]
    assert (frame.logit_error > 1e-4).all()
    assert (frame.logit_error < 0.05).all()
    assert frame.right_float32[0] > 0.8
    assert "chunked" in text


def test_vim_latency_counts_the_products_of_its_own_pass(script, tmp_path, monkeypatch):
    experiment = script("vim_latency")
    monkeypatch.setattr(experiment.scanlab, "vim_tiny", lambda img_size, scan: small_vim(scan, img_size))
    out = tmp_path / "vim_latency"
    with untouched():
        experiment.main(rounds=1, size=32, backend="chunked:threads=1", out=out)
        sys.modules.pop("vim_by_name")
    text, frame = page_of(out)
    assert list(zip(frame.measured, frame.dtype, strict=True)) == [  # one round: the CPUs were near or far
        ("over products", "float32"),
        *[("over packed products", "float32")] * (onednn.unavailable() is None),
        ("official over ours", "float32"),
        ("over products", "bfloat16"),
        *[("over packed products", "bfloat16")] * (onednn.unavailable() is None),
        ("over float32", "bfloat16"),
    ]
    assert (frame.fastest > 0.0).all()
    assert "chunked" in text


def small_vim(scan: str, size: int = 224) -> VisionMamba:
    """Two layers on few patches."""
    return VisionMamba(img_size=size, patch_size=16, stride=16, depth=2, embed_dim=32, num_classes=10, scan=scan)


def test_a_page_of_another_processor_is_not_overwritten(script, tmp_path):
    common = script("common")
    folder = tmp_path / "claim"
    folder.mkdir()
    other = folder / "claim.md"
    other.write_text("Some Other Processor, 2 usable CPUs")
    common.write_page(folder, "A claim.", common.place(), {}, {}, pd.DataFrame({"x": [1]}))
    assert other.read_text() == "Some Other Processor, 2 usable CPUs"
    (own,) = set(folder.glob("*.md")) - {other}
    assert own.name == f"claim-{common.silicon_name()}.md"
    before = own.read_text()
    own.unlink()
    other.unlink()
    common.write_page(folder, "A claim.", common.place(), {}, {}, pd.DataFrame({"x": [1]}))
    assert other.read_text() == before


def test_vmamba_by_every_scan(script, tmp_path):
    script("vmamba").main(size=32, dim=16, limit_s=0.1, out=tmp_path / "vmamba")
    text, frame = page_of(tmp_path / "vmamba")
    assert list(frame.design.unique()) == ["s1", "s2", "v0"]
    assert (frame[frame.scan == "cross_scan_2d"].ratio == 1).all()
    assert "cross_scan_2d_native" in text
