"""Numbered examples run as they are, and end with what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def tutorial(tmp_path):
    """Run an example in an empty folder, and return what it printed."""

    def run(name: str, *arguments: str) -> str:
        command = [sys.executable, str(EXAMPLES / name), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_mamba_at_once_and_step_by_step(tutorial):
    said = tutorial("1_run_a_mamba.py")
    assert re.search(r"differ by \d\.\de-0[678]", said)
    assert "batch=1,dim=256,length=200" in said


def test_a_tuned_scan_has_a_report_or_says_that_the_machine_is_busy(tutorial, tmp_path):
    said = tutorial("2_tune_a_scan.py", "--budget", "4s")
    if "No winner" not in said:
        assert (tmp_path / "runs" / "tutorial" / "report" / "index.html").exists()
        assert (tmp_path / "runs" / "tutorial" / "profile.json").exists()


@pytest.mark.slow
def test_a_tuned_model_computes_right_with_whatever_was_chosen(tutorial):
    said = tutorial("3_tune_a_model.py", "--budget", "3s")
    assert re.search("1[56] of 16 digits are right", said)


def test_a_backend_of_thirty_lines_is_verified_and_compared(tutorial):
    said = tutorial("4_write_a_backend.py", "--seconds", "3")
    assert re.search(r"^mine threads=0", said, flags=re.MULTILINE)
    assert not re.search("wrong|crashed|rejected", said)


def test_the_digits_are_learned(tutorial, tmp_path):
    said = tutorial("5_train_digits.py", "--epochs", "1")
    assert float(said.partition("%")[0]) > 40
    assert (tmp_path / "digits-training.png").stat().st_size > 5000


def test_an_exported_graph_computes_the_same(tutorial, tmp_path):
    pytest.importorskip("onnxruntime")
    said = tutorial("6_export.py")
    assert re.search(r"model.onnx: logits differ by \d\.\de-0[5-9]", said)
    assert (tmp_path / "vim-onnx" / "run.py").exists()
