"""A product of a few rows is the product, whatever their number, the weight's shape and its strides."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from helpers.instruction_sets import assert_close
from scanlab.runtime import dispatch
from scanlab.runtime.ops import PrepackedWeight, linear
from scanlab_kernels.linear.native import MAX_FEW_ROWS

pytestmark = pytest.mark.usefixtures("native")


@pytest.fixture(autouse=True)
def by_native_products(monkeypatch, native):
    """Products by the native kernels, whatever is fastest on this machine."""
    monkeypatch.setenv("SCANLAB_LINEAR", "native")
    dispatch.clear()
    yield
    dispatch.clear()


@pytest.mark.parametrize("rows", [1, 2, 3, MAX_FEW_ROWS])
@pytest.mark.parametrize(("out", "depth"), [(1, 1), (7, 16), (8, 31), (19, 100), (1000, 40)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 4e-3), ("float16", 5e-4)])
def test_it_is_the_product(isa, rows, out, depth, biased, dtype, tolerance) -> None:
    generator = torch.Generator().manual_seed(out)
    x, weight, bias = (
        torch.randn(shape, generator=generator).to(getattr(torch, dtype))
        for shape in ((rows, depth), (out, depth), (out,))
    )
    given = bias if biased else None
    got = torch.ops.scanlab_mixer.gemv(x, weight, given)
    want = F.linear(x.double(), weight.double(), bias.double() if biased else None)
    assert got.dtype == x.dtype
    assert_close([got], [want], ["product"], tolerance)


def test_rows_and_weights_that_lie_apart() -> None:
    x, weight, bias = torch.randn(3, 24), torch.randn(40, 48), torch.randn(80)
    product = torch.ops.scanlab_mixer.gemv
    for other in (weight[:, :24], weight[:, ::2], weight[::2, 24:], weight.T[:40, :24]):
        strided = bias[: 2 * len(other) : 2]
        torch.testing.assert_close(product(x[:, ::1], other, strided), F.linear(x, other, strided))
    torch.testing.assert_close(product(x.T[:3, :3], weight[:, :3], None), F.linear(x.T[:3, :3], weight[:, :3]))


def test_a_row_does_not_depend_on_the_others() -> None:
    x, weight = torch.randn(4, 100), torch.randn(19, 100)
    product = torch.ops.scanlab_mixer.gemv
    assert torch.equal(product(x, weight, None)[2:3], product(x[2:3], weight, None))


def test_a_packed_linear_of_few_rows() -> None:
    x, weight, bias = torch.randn(2, 3, 24), torch.randn(40, 24), torch.randn(40)
    got = linear(x, PrepackedWeight(weight), bias)
    torch.testing.assert_close(got, F.linear(x, weight, bias))


def test_torchs_own_checks_of_the_op() -> None:
    torch.library.opcheck(torch.ops.scanlab_mixer.gemv.default, (torch.randn(2, 24), torch.randn(40, 24), None))


@pytest.mark.parametrize(
    ("x", "weight", "bias", "error"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 5), None, ValueError),
        (torch.zeros(3), torch.zeros(4, 3), None, ValueError),
        (torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(3), ValueError),
        (torch.zeros(2, 3).double(), torch.zeros(4, 3).double(), None, ValueError),
    ],
)
def test_what_does_not_fit_is_refused(x, weight, bias, error) -> None:
    with pytest.raises(error):
        torch.ops.scanlab_mixer.gemv(x, weight, bias)
