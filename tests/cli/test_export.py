"""`scanlab export`: the files, the numbers, and the errors of wrong arguments."""

from __future__ import annotations

import json

import pytest

from helpers import tiny_vim
from scanlab.export import bundle
from scanlab.models import checkpoints, vision_mamba


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Weights of a tiny model that stands in for the released vim-tiny."""
    monkeypatch.setitem(vision_mamba.RELEASED, "vim_tiny", tiny_vim.tiny_vim)
    monkeypatch.setitem(checkpoints.PUBLISHED, "vim_tiny", tiny_vim.PUBLISHED)
    return tiny_vim.write_weights(tmp_path / "weights.safetensors")


@pytest.fixture
def onnx(weights):
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library, reason=f"the extra `onnx` is not installed: {library}")
    return ("export", "--weights", str(weights), "--format", "onnx", "--size", "32", "--to")


def test_export_writes_a_graph_and_says_how_far_it_is_off(run, onnx, tmp_path):
    outcome = run(*onnx, "made")
    assert outcome.code == 0, outcome.err
    assert "export: " in outcome.err  # a log file shows what goes on
    assert "model.onnx ok  logits off by" in outcome.out
    assert "wrote made: python made/run.py PICTURE" in outcome.out
    manifest = json.loads((tmp_path / "made" / "manifest.json").read_text())
    assert (manifest["model"], manifest["size"]) == ("vim_tiny", 32)
    assert len(manifest["weights_sha256"]) == 64
    assert {path.name for path in (tmp_path / "made").iterdir()} == {
        *("model.onnx", "run.py", "loading.py", "classes.txt", "manifest.json")
    }


def test_export_fails_with_the_numbers(run, onnx, tmp_path, monkeypatch):
    monkeypatch.setitem(bundle.TOLERANCES, "onnx", 1e-12)
    outcome = run(*onnx, "made", "--json")
    assert outcome.code == 1
    (check,) = outcome.json["checks"]
    assert check["difference"] > check["tolerance"]
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--model", "vim-huge"), "--model vim-huge: must be one of vim-tiny"),
        (("--model", "vim-small"), "holds weights of vim_tiny, not of vim_small"),
        (("--weights", "nowhere.pth"), "nowhere.pth: no such file"),
        (("--to", "full"), "full holds something already"),
    ],
)
def test_export_says_what_is_wrong(run, weights, tmp_path, change, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    outcome = run("export", "--weights", str(weights), "--to", "made", *change)
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split())
    assert not (tmp_path / "made").exists()
