"""The example classifies what it can read, reports what it cannot, and refuses missing weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from scanlab.models.capture import trained_like_
from scanlab.models.checkpoints import save_weights
from scanlab.models.images import sample_photograph
from scanlab.models.vision_mamba import vim_tiny

SCRIPT = Path(__file__).parents[2] / "examples" / "classify_an_image.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("classify_an_image", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_it_names_classes_and_reports_what_it_cannot_read(main, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SCANLAB_BACKEND", "two_phase")
    weights = tmp_path / "vim.safetensors"
    save_weights(trained_like_(vim_tiny(scan="reference")), weights)
    photos = tmp_path / "photos"
    photos.mkdir()
    sample_photograph().save(photos / "temple.png")
    (photos / "torn.jpg").write_bytes(b"not a picture")
    assert main([str(photos), "--weights", str(weights), "--top", "3"]) == 1
    printed = capsys.readouterr()
    assert printed.out.count("%") == 3
    assert "torn.jpg cannot be read as a picture" in printed.err


def test_missing_weights_are_refused(main, tmp_path, capsys):
    picture = tmp_path / "photo.png"
    sample_photograph().save(picture)
    assert main([str(picture), "--weights", str(tmp_path / "missing.pth")]) == 2
    assert "missing.pth" in capsys.readouterr().err
