"""Copies of VMamba's file of Triton kernels on machines without a GPU, and without Triton."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from helpers.official_names import untouched
from scanlab.integrations import mamba_ssm as drop_in

KERNEL = """
import triton
import triton.language as tl

@triton.jit
def kernel(x, width: tl.constexpr):
    return tl.load(x)
"""
CLASSES = """
import torch

class CrossScanTriton(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor):
        return kernel[(1,)](x, 1)

class CrossMergeTriton(CrossScanTriton): pass
class CrossScanTriton1b1(CrossScanTriton): pass
class CrossScanTritonF(CrossScanTriton): pass

class CrossMergeTritonF(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, in_channel_first=True, scans=0):
        return "it chooses by itself"
"""


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    (tmp_path / "their_models").mkdir()
    (tmp_path / "their_models" / "csm_triton.py").write_text(CLASSES)
    monkeypatch.syspath_prepend(str(tmp_path))
    with untouched():
        drop_in.install()
        yield importlib.import_module("their_models.csm_triton")
    for name in ("their_models", "their_models.csm_triton"):
        sys.modules.pop(name, None)


def by_steps(x: Tensor) -> Tensor:
    """Return the scan of a map (dim, height, width), position by position."""
    _, height, width = x.shape
    rows = [x[:, i, j] for i in range(height) for j in range(width)]
    columns = [x[:, i, j] for j in range(width) for i in range(height)]
    return torch.stack([torch.stack(each, 1) for each in (rows, columns, rows[::-1], columns[::-1])])


def test_scans_and_merges(kernels):
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    scan = kernels.CrossScanTriton.apply(x)
    torch.testing.assert_close(scan, torch.stack([by_steps(each) for each in x]))
    torch.testing.assert_close(kernels.CrossScanTritonF.apply(x.movedim(1, -1), False), scan)
    maps = x[:, None].expand(2, 4, 3, 4, 5)
    torch.testing.assert_close(kernels.CrossScanTriton1b1.apply(maps), scan)
    merged = kernels.CrossMergeTriton.apply(scan.unflatten(-1, (4, 5)))
    torch.testing.assert_close(merged, 4 * x.flatten(2))
    (grad,) = torch.autograd.grad(merged.sum(), x)
    assert torch.equal(grad, torch.full_like(x, 4))


def test_a_class_that_chooses_by_the_device_is_left_as_it_is(kernels):
    assert kernels.CrossMergeTritonF.__mro__[1] is torch.autograd.Function


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from scanlab.errors import UnavailableError
from scanlab.integrations import mamba_ssm as drop_in
drop_in.install()
import csm_triton
assert sys.modules["triton"] is None
assert csm_triton.CrossScanTriton.apply(torch.ones(1, 2, 3, 4)).shape == (1, 4, 2, 12)
try:
    csm_triton.CrossScanTriton.apply(torch.ones(1, 2, 3, 4, device="meta"))
except UnavailableError as error:
    print(error)
"""


def test_without_triton_its_kernels_can_be_imported_and_not_be_launched(tmp_path):
    (tmp_path / "csm_triton.py").write_text(KERNEL + CLASSES)
    (tmp_path / "script.py").write_text(WITHOUT_TRITON)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=True)
    assert "written in Triton, which is not installed" in done.stdout
