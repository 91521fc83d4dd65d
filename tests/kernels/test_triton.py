"""The place of the GPU kernels: named, never run, and not in the way of the package of the same name."""

import subprocess
import sys

import pytest

from scanlab import registry
from scanlab.errors import UnavailableError
from scanlab.kernels import triton
from scanlab.problem import ScanProblem

PROBLEM = ScanProblem(batch=1, dim=4, length=8, device="cuda")


@pytest.mark.parametrize(("gpu", "reason"), [(False, "no GPU; run on a machine"), (True, "not written yet; choose")])
def test_says_why_it_cannot_run(monkeypatch, gpu, reason):
    monkeypatch.setattr(triton.torch.cuda, "is_available", lambda: gpu)
    with pytest.raises(UnavailableError, match=reason):
        registry.get("triton").build(PROBLEM)


def test_rejects_the_cpu():
    assert triton.backend.rejects(PROBLEM.replace(device="cpu")) == "device cpu: it has cuda"
    with pytest.raises(UnavailableError):
        triton.make(PROBLEM, {})


def test_imports_nothing_of_the_package_triton():
    code = "import sys, scanlab.kernels.triton; print('triton' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
