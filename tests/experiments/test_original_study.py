"""The original study's implementations are right, so that the ladder times what it says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from scanlab.bench.context import BenchmarkContext, Candidate
from scanlab.bench.worker import LocalWorker
from scanlab.contract.problem import ScanProblem, make_inputs
from scanlab_kernels.selective_scan import cpp_torch

SCRIPT = Path(__file__).parents[2] / "experiments" / "original_study.py"
PROBLEM = ScanProblem(batch=2, dim=10, length=37, state=5, direction="bidirectional", layout="dim_last")


def load():
    spec = importlib.util.spec_from_file_location("original_study", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CLAIMS = load().CLAIMS


@pytest.mark.skipif(cpp_torch.backend.unavailable() is not None, reason="no C++ compiler")
@pytest.mark.parametrize("backend", CLAIMS, ids=lambda backend: backend.name)
def test_each_step_agrees_with_float64(backend):
    context = BenchmarkContext.of(PROBLEM, make_inputs(PROBLEM), "drawn", 0)
    outcome = LocalWorker(context).verify(Candidate(backend, backend.space.defaults))
    assert outcome.state == "ok", outcome
    assert outcome.verdict.worst < 2e-6
