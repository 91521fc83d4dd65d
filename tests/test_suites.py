"""Suite files: odd ones are refused with a sentence, and labels say what the inputs are."""

from __future__ import annotations

import pytest
import torch

from scanlab.contract.problem import ScanProblem
from scanlab.errors import InputError, UnavailableError
from scanlab.suites import drawn_case, load_suite, read_suites


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("mine = 3", "must be a table"),
        ("[[mine]]\nproblems = []", "must be a table"),
        ("[mine]", "must be a table"),
        ("[mine]\nproblems = []", "problems must be a list of at least one text"),
        ("[mine]\nproblems = 'batch=1,dim=2,length=3'", "problems must be a list of at least one text"),
        ("[mine]\nproblems = [{batch = 1}]", "problems must be a list of at least one text"),
        ("[mine]\nproblems = [[1]]", "problems must be a list of at least one text"),
        ("[mine]\nsummary = 3\nmodel = 'vim_tiny'", "summary must be a text"),
        ("[mine]\nmodel = 3", "model must be the name of a Vim"),
        ("[mine", "is not TOML"),
        ("a = " + 9999 * "1", "is not TOML"),
        ("a = " + 9999 * "[", "nested too deeply"),
    ],
)
def test_an_odd_suite_is_refused(tmp_path, text, complaint):
    file = tmp_path / "suites.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=complaint):
        read_suites(file)


def test_a_problem_that_is_named_twice_is_refused(tmp_path):
    file = tmp_path / "suites.toml"
    file.write_text("[mine]\nproblems = ['batch=1,dim=2,length=3', 'length=3,dim=2,batch=1']")
    with pytest.raises(InputError, match="'mine' names batch=1,dim=2,length=3,state=16 2 times: name it once"):
        load_suite(f"{file}:mine")


@pytest.mark.parametrize(
    "suite",
    [
        "model = 'torch'\nimage_size = 32",
        "model = 'vim_tiny'",
        "model = 'vim_tiny'\nimage_size = true",
        "model = 'vim_tiny'\nimage_size = 99999",
    ],
)
def test_a_model_that_cannot_be_built_is_refused(tmp_path, suite):
    file = tmp_path / "suites.toml"
    file.write_text(f"[mine]\n{suite}")
    with pytest.raises(InputError, match="model must be one of vim_tiny.*image_size"):
        load_suite(f"{file}:mine")


def test_the_label_of_a_captured_problem_says_that_the_weights_are_synthetic(tmp_path):
    file = tmp_path / "suites.toml"
    file.write_text("[mine]\nmodel = 'vim_tiny'\nimage_size = 32")
    (case,) = load_suite(f"{file}:mine")
    assert "synthetic weights" in case.label


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnavailableError, match="device=cuda.*device=cpu"):
        drawn_case(ScanProblem(batch=1, dim=4, length=8, device="cuda"))


@pytest.mark.parametrize(("changes", "complaint"), [({"device": "tpu"}, "device=tpu"), ({"length": 2**40}, "smaller")])
def test_a_problem_that_cannot_be_drawn_is_refused(changes, complaint):
    with pytest.raises(InputError, match=complaint):
        drawn_case(ScanProblem(batch=1, dim=4, length=8).replace(**changes))
