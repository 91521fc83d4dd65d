"""A packed product is the product: of any shape, on every instruction set, and where nothing can be packed."""

import pytest
import torch
import torch.nn.functional as F

from helpers.instruction_sets import BFLOAT16_SETS, PRODUCT_SETS, instruction_set
from scanlab.contract import registry
from scanlab.contract.cpu import torch_threads
from scanlab.runtime import dispatch
from scanlab.runtime.ops import PrepackedWeight, in_torch, linear
from scanlab_kernels.linear import native as native_products
from scanlab_kernels.linear.native import packed as packed_form
from scanlab_kernels.linear.op import LinearInputs, LinearProblem

MIN_ROWS = 32

pytestmark = pytest.mark.usefixtures("native")


@pytest.fixture(autouse=True)
def by_native_products(monkeypatch, native):
    """Products by the native kernels, whatever is fastest on this machine."""
    monkeypatch.setenv("SCANLAB_LINEAR", "native")
    dispatch.clear()
    yield
    dispatch.clear()


def tensors(dtype=torch.float32, rows=MIN_ROWS):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in ((2, rows, 24), (40, 24), (40,)))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_is_the_product(dtype, bound, with_bias):
    x, weight, bias = tensors(dtype)
    out = linear(x, PrepackedWeight(weight), bias if with_bias else None)
    right = F.linear(x.double(), weight.double(), bias.double() if with_bias else None)
    assert out.dtype == dtype
    assert (out.double() - right).abs().max() <= bound * right.abs().max()


@pytest.mark.parametrize(
    ("dtype", "isa"),
    [
        *((torch.float32, isa) for isa in PRODUCT_SETS),
        *((torch.bfloat16, isa) for isa in BFLOAT16_SETS),
    ],
)
@pytest.mark.parametrize("features", [1, 16, 17, 48, 49, 81, 100])
@pytest.mark.parametrize(("rows", "depth"), [(32, 1), (33, 24), (45, 300), (137, 7)])
def test_every_shape_on_every_instruction_set(dtype, isa, features, rows, depth):
    x, weight, bias = (torch.randn(shape).to(dtype) for shape in ((rows, depth), (features, depth), (features,)))
    with instruction_set(isa):
        out = native_products.linear(x, PrepackedWeight(weight), bias)
    right = F.linear(x.double(), weight.double(), bias.double())
    assert (out - right).abs().max() <= (3e-6 if dtype == torch.float32 else 4e-3) * right.abs().max()


def test_the_bits_do_not_depend_on_the_threads():
    x, weight, bias = torch.randn(200, 24), torch.randn(100, 24), torch.randn(100)
    outs = []
    for threads in (1, 2, 3, 8):
        with torch_threads(threads):
            outs.append(linear(x, PrepackedWeight(weight), bias))
    assert all(torch.equal(outs[0], out) for out in outs)


def test_a_slice_of_rows_and_a_slice_of_the_weight():
    x, weight, _ = tensors()
    half = weight[20:]
    strided, first = half[:, ::2], half[:, :7]
    torch.testing.assert_close(linear(x[..., ::2], PrepackedWeight(strided)), F.linear(x[..., ::2], strided))
    torch.testing.assert_close(linear(x[..., :7], PrepackedWeight(first)), F.linear(x[..., :7], first))


@pytest.mark.parametrize("name", ["linear_onednn", "linear_mkl"])
def test_a_bias_of_one_number_is_added_everywhere_and_nothing_behind_it_is_read(name):
    x, weight, _ = tensors()
    backend = registry.get(name)
    if backend.unavailable() is not None:
        pytest.skip(str(backend.unavailable()))
    problem = LinearProblem(rows=x.numel() // x.shape[-1], in_features=x.shape[-1], out_features=len(weight))
    function = backend.build(problem, {})
    for bias in (torch.tensor(2.0), torch.tensor([2.0])):
        out = function(LinearInputs(x, weight, bias)).out
        torch.testing.assert_close(out, F.linear(x, weight) + 2.0)
    with pytest.raises(RuntimeError, match="expand"):
        function(LinearInputs(x, weight, torch.ones(len(weight) + 1)))


def test_a_bias_that_is_no_vector_is_broadcast_as_torch_does():
    x, weight, bias = tensors()
    packed = PrepackedWeight(weight)
    for odd in (bias[None], bias[:1], bias[0]):
        torch.testing.assert_close(linear(x[0], packed, odd), F.linear(x[0], weight) + odd)
    with pytest.raises(RuntimeError, match="size"):
        linear(x[0], packed, bias[:7])


def test_a_form_of_another_weight_is_refused():
    x, weight, _ = tensors()
    with pytest.raises(ValueError, match="packed"):
        torch.ops.scanlab_mixer.packed_linear(x, packed_form(PrepackedWeight(weight[:10])), None, len(weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_of_any_strides(isa: str, dtype: torch.dtype) -> None:
    x, weight, bias = tensors(dtype, MIN_ROWS)
    strided = torch.full((3 * len(bias),), float("nan"), dtype=dtype)[::3]
    strided.copy_(bias)
    packed = PrepackedWeight(weight)
    assert torch.equal(linear(x, packed, strided), linear(x, packed, bias))
    one = bias[:1].expand(len(bias))
    assert torch.equal(linear(x, packed, one), linear(x, packed, one.contiguous()))


def test_a_view_of_a_packed_weight_is_refused() -> None:
    x, weight, _ = tensors()
    packed = packed_form(PrepackedWeight(weight))
    with pytest.raises(ValueError, match="contiguous"):
        torch.ops.scanlab_mixer.packed_linear(x, packed.repeat_interleave(2)[::2], None, len(weight))


def test_a_tensor_without_data_among_others_is_refused() -> None:
    x, weight, bias = tensors()
    with pytest.raises(ValueError, match="on meta"):
        torch.ops.scanlab_mixer.packed_linear(x, packed_form(PrepackedWeight(weight)), bias.to("meta"), len(weight))


def test_gradients_flow_where_they_are_wanted():
    x, weight, _ = tensors()
    weight.requires_grad_()
    (gradient,) = torch.autograd.grad(linear(x, PrepackedWeight(weight)).sum(), weight)
    torch.testing.assert_close(gradient, x.sum((0, 1)).expand(40, 24))


@pytest.mark.parametrize("rows", [1, MIN_ROWS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_of_the_bias_alone(rows, dtype):
    x, weight, bias = tensors(dtype, rows)
    bias.requires_grad_()
    (gradient,) = torch.autograd.grad(linear(x, PrepackedWeight(weight), bias).sum(), bias)
    torch.testing.assert_close(gradient, torch.full_like(bias, x[..., 0].numel()))


def test_torch_knows_their_shapes():
    x, weight, bias = tensors()
    for op, arguments in (
        (torch.ops.scanlab_mixer.pack_linear, (weight,)),
        (torch.ops.scanlab_mixer.packed_linear, (x, packed_form(PrepackedWeight(weight)), bias, len(weight))),
    ):
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


def test_what_is_more_than_a_product_is_not_packed():
    x, weight, _ = tensors()
    packed = PrepackedWeight(weight.double())
    linear(x.double(), packed)
    assert packed.prepacked_bytes == 0
    packed = PrepackedWeight(weight)
    with in_torch():
        linear(x, packed)
    with torch.autocast("cpu"):
        assert linear(x, packed).dtype == torch.bfloat16
    assert packed.prepacked_bytes == 0


@pytest.mark.parametrize("rows", [0, 3, 40])
@pytest.mark.parametrize(("into", "out"), [(0, 5), (5, 0), (0, 0)])
def test_nothing_to_multiply(rows: int, into: int, out: int) -> None:
    x, weight, bias = torch.randn(rows, into), torch.randn(out, into), torch.randn(out)
    assert torch.equal(linear(x, PrepackedWeight(weight), bias), F.linear(x, weight, bias))


@pytest.mark.parametrize("rows", [3, 40])
def test_derivatives_by_transforms(rows: int) -> None:
    x, weight, tangent = torch.randn(rows, 20), torch.randn(30, 20), torch.randn(30, 20)
    linear(x, PrepackedWeight(weight))
    _, moved = torch.func.jvp(lambda weight: linear(x, PrepackedWeight(weight)), (weight,), (tangent,))
    torch.testing.assert_close(moved, F.linear(x, tangent))
    gradient = torch.func.grad(lambda weight: linear(x, PrepackedWeight(weight)).square().sum())(weight)
    torch.testing.assert_close(gradient, 2 * F.linear(x, weight).T @ x)


@pytest.mark.parametrize("features", [2**63 - 1, 2**61, 2**40])
def test_a_product_too_large_for_memory_is_refused(features: int) -> None:
    x = torch.zeros(4, 8, 1, 16, dtype=torch.uint8)
    with pytest.raises((ValueError, RuntimeError)):
        torch.ops.scanlab_mixer.packed_linear(x, x.clone(), None, features)
    wide = torch.zeros(4, 16)
    with pytest.raises((ValueError, RuntimeError)):
        torch.ops.scanlab_mixer.packed_linear(wide, torch.zeros(16 * 16), None, features)
