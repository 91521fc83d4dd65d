"""The contract of every backend of `cross_scan_2d`."""

import pytest
import torch

from scanlab.contract.backend import Backend
from scanlab.testing import OpContract
from scanlab_kernels.cross_scan_2d import composed, native
from scanlab_kernels.cross_scan_2d import torch as by_torch
from scanlab_kernels.cross_scan_2d.problem import CrossScanProblem, make_inputs


class TestTorch(OpContract):
    backend = by_torch.backend


class TestComposed(OpContract):
    backend = composed.backend


class TestNative(OpContract):
    backend = native.backend


@pytest.mark.parametrize("backend", [composed.backend, native.backend], ids=lambda backend: backend.name)
def test_an_infinite_input_stays_infinite_where_nothing_skips(backend: Backend) -> None:
    problem = CrossScanProblem(batch=1, dim=20, height=5, width=4, state=1, has_D=False)
    (inputs,) = make_inputs(problem)
    inputs.u[0, 3, 2, 1] = float("inf")
    want = by_torch.backend.build(problem)(inputs).out
    assert want.isinf().any()
    assert torch.equal(backend.build(problem)(inputs).out.isnan(), want.isnan())
