"""A packed product is the product: with another weight, a changed weight, and where nothing can be packed."""

import pytest
import torch
import torch.nn.functional as F

from scanlab.mixer import Derived, in_torch, packed_linear
from scanlab.mixer.packed_linear import FEWEST_ROWS, packs

packable = pytest.mark.skipif(
    not packs(torch.zeros(FEWEST_ROWS, 1), torch.zeros(1, 1)), reason="oneDNN takes no packed weight on this machine"
)


def tensors(dtype=torch.float32, rows=FEWEST_ROWS):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in ((2, rows, 24), (40, 24), (40,)))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_it_is_the_product(dtype, bound, with_bias, scale):
    x, weight, bias = tensors(dtype)
    out = packed_linear(Derived(), x, weight, bias if with_bias else None, scale=scale)
    right = F.linear(x.double(), scale * weight.double(), bias.double() if with_bias else None)
    assert out.dtype == dtype
    assert (out.double() - right).abs().max() <= bound * right.abs().max()


def test_a_slice_of_rows_and_a_slice_of_the_weight():
    x, weight, _ = tensors()
    half = weight[20:]
    torch.testing.assert_close(packed_linear(Derived(), x[..., ::2], half[:, ::2]), F.linear(x[..., ::2], half[:, ::2]))


@packable
def test_a_weight_that_changed_in_place_is_packed_anew():
    x, weight, _ = tensors()
    weight = torch.nn.Parameter(weight)
    packed = Derived()
    with torch.no_grad():
        assert packs(x, weight)
        before = packed_linear(packed, x, weight)
        weight.mul_(2.0)
        torch.testing.assert_close(packed_linear(packed, x, weight), 2.0 * before)


@packable
def test_another_weight_at_the_same_place_is_packed_anew():
    x, weight, _ = tensors()
    packed = Derived()
    for factor in (1.0, 2.0, 3.0):
        other = factor * weight
        torch.testing.assert_close(packed_linear(packed, x, other), F.linear(x, other))
        del other


@packable
def test_what_torch_does_not_count_is_seen_after_forget():
    x, weight, _ = tensors()
    packed = Derived()
    before = packed_linear(packed, x, weight)
    weight.data.mul_(2.0)
    packed.forget()
    torch.testing.assert_close(packed_linear(packed, x, weight), 2.0 * before)


def test_gradients_flow_where_they_are_wanted():
    x, weight, bias = tensors()
    weight.requires_grad_()
    assert not packs(x, weight)
    (gradient,) = torch.autograd.grad(packed_linear(Derived(), x, weight, bias, scale=0.5).sum(), weight)
    torch.testing.assert_close(gradient, 0.5 * x.sum((0, 1)).expand(40, 24))


def test_few_rows_other_dtypes_and_the_ops_in_torch_are_not_packed():
    x, weight, _ = tensors()
    assert not packs(x[:1, : FEWEST_ROWS - 1], weight)
    assert not packs(x.double(), weight.double())
    with in_torch():
        assert not packs(x, weight)
    with torch.autocast("cpu"):
        assert not packs(x, weight)
        assert packed_linear(Derived(), x, weight).dtype == torch.bfloat16
