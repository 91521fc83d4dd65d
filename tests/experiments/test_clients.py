"""The catalogue of clients and the page about them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pandas as pd
import pytest
import torch

from scanlab.errors import InputError

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "experiments"


@pytest.fixture
def compatibility(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.syspath_prepend(str(SCRIPTS / "clients"))
    return importlib.import_module("compatibility")


def test_the_page_is_about_models_of_the_catalogue(compatibility) -> None:
    rows = pd.concat([pd.read_csv(each) for each in (ROOT / "results" / "compatibility").glob("*.csv")])
    clients = {(each.repository, each.model) for each in compatibility.CLIENTS}
    assert len(clients) == len(compatibility.CLIENTS)
    assert set(zip(rows.repository, rows.model, strict=True)) <= clients
    text = (ROOT / "docs" / "compatibility.md").read_text()
    for repository, model in zip(rows.repository, rows.model, strict=True):
        assert f"[{repository}](https://github.com/{repository})" in text
        assert model in text


def test_a_missing_checkout_is_named(compatibility, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no .*hustvl\+Vim: clone https://github.com/hustvl/Vim there"):
        compatibility.main(tmp_path, only="hustvl", page=tmp_path / "page.md", out=tmp_path)
    with pytest.raises(InputError, match="--only nobody: is not part of any of state-spaces/mamba"):
        compatibility.main(tmp_path, only="nobody", page=tmp_path / "page.md", out=tmp_path)


def test_the_error_is_a_share_of_the_largest_value(compatibility) -> None:
    want = [torch.tensor([1.0, -8.0]), torch.tensor([2.0])]
    assert compatibility.error([want[0] + 0.8, want[1]], want) == pytest.approx(0.1)
