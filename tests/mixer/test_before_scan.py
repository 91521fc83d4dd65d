"""What is scanned comes out of one native op as out of its parts: in both directions, of any shape, on every set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scanlab import mixer
from scanlab.errors import ProblemError
from scanlab.mixer import Direction, Packed
from scanlab.mixer.before_scan import _fuses
from scanlab.mixer.packed_linear import multiplies
from scanlab.threads import torch_threads

from .sets import INSTRUCTION_SETS, assert_close, instruction_set

pytestmark = pytest.mark.usefixtures("native")

NAMES = ("u", "delta", "B", "C")


def weights(
    dim: int, *, width: int = 4, rank: int = 3, state: int = 5, dtype: torch.dtype = torch.float32, bias: bool = True
) -> Direction:
    """Random weights of one direction."""
    return Direction(
        torch.randn(dim, width).to(dtype),
        torch.randn(dim).to(dtype) if bias else None,
        Packed((torch.randn(rank + 2 * state, dim) / dim**0.5).to(dtype)),
        Packed((torch.randn(dim, rank) / rank**0.5).to(dtype)),
    )


def wide(direction: Direction) -> Direction:
    """The same in float64, which no native op fuses."""
    bias = None if direction.conv_bias is None else direction.conv_bias.double()
    x, dt = (Packed(packed.weight.double()) for packed in (direction.x, direction.dt))
    return Direction(direction.conv_weight.double(), bias, x, dt)


def assert_right(x: Tensor, *directions: Direction) -> None:
    got = mixer.before_scan(x, *directions)
    want = mixer.before_scan(x.double(), *map(wide, directions))
    assert len(got) == len(want) == len(directions)
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, NAMES, 2e-6)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("shape", [(1, 32, 16), (3, 41, 40), (2, 100, 70), (40, 1, 24), (1, 197, 384)])
def test_it_is_its_parts_in_float64(isa: str, both: bool, shape: tuple[int, int, int]) -> None:
    batch, length, dim = shape
    x = torch.randn(batch, length, dim)
    directions = [weights(dim), weights(dim, bias=False)][: 1 + both]
    assert _fuses(x, tuple(directions))
    with instruction_set(isa):
        assert_right(x, *directions)


@pytest.mark.parametrize("width", [1, 2, 3, 7])
@pytest.mark.parametrize(("rank", "state"), [(1, 1), (12, 16), (5, 40)])
def test_other_widths_ranks_and_states(width: int, rank: int, state: int) -> None:
    options = {"width": width, "rank": rank, "state": state}
    assert_right(torch.randn(2, 50, 33), weights(33, **options), weights(33, **options))


def test_strided_inputs() -> None:
    x = torch.randn(2, 80, 100)
    for view in (x[:, ::2, :48], x[:, :, ::2], x.mT, x[:, 3:60, 1:65]):
        assert_right(view, weights(view.shape[2]), weights(view.shape[2]))


def test_the_bits_do_not_depend_on_the_threads() -> None:
    x, directions = torch.randn(2, 197, 64), (weights(64), weights(64))
    found = []
    for threads in (1, 2, 3, 8):
        with torch_threads(threads):
            found.append([tensor for each in mixer.before_scan(x, *directions) for tensor in each])
    assert all(torch.equal(one, other) for each in found[1:] for one, other in zip(found[0], each, strict=True))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("shape", [(1, 41, 16), (2, 50, 33), (1, 197, 384)])
@pytest.mark.parametrize("rank", [1, 3, 12])
def test_bfloat16_fused_and_composed(isa: str, shape: tuple[int, int, int], rank: int) -> None:
    x = torch.randn(shape).bfloat16()
    directions = tuple(weights(shape[2], rank=rank, dtype=torch.bfloat16) for _ in range(2))
    with instruction_set(isa):
        assert _fuses(x, directions) == multiplies(torch.bfloat16)
        got = mixer.before_scan(x, *directions)
    want = mixer.before_scan(x.double(), *map(wide, directions))
    for one, other in zip(got, want, strict=True):
        # three roundings in a row: of u, of what is selected from it, and of the steps
        assert_close(one, other, NAMES, 1.5e-2)


def test_float64_is_composed() -> None:
    x, direction = torch.randn(1, 40, 16).double(), weights(16, dtype=torch.float64)
    assert not _fuses(x, (direction,))
    (got,) = mixer.before_scan(x, direction)
    (want,) = mixer.before_scan(x, wide(direction))
    assert_close(got, want, NAMES, 0.0)


@pytest.mark.parametrize("wanted", range(4))
def test_gradients_flow_to_every_weight_that_wants_one(wanted: int) -> None:
    x, direction = torch.randn(1, 40, 16), weights(16)
    leaf = [direction.conv_weight, direction.conv_bias, direction.x.weight, direction.dt.weight][wanted]
    leaf.requires_grad_()
    (got,) = mixer.before_scan(x, direction)
    (gradient,) = torch.autograd.grad(got.delta.square().sum(), leaf)
    assert gradient.abs().max() > 0
    with torch.no_grad():
        (again,) = mixer.before_scan(x, direction)
    assert_close(again, got, NAMES, 1e-5)


def test_torch_knows_its_shapes() -> None:
    x, (ahead, back) = torch.randn(2, 20, 16), (weights(16), weights(16))

    def read(of: Direction) -> tuple[Tensor | None, ...]:
        return of.conv_weight, of.conv_bias, of.x.native, of.dt.native

    for arguments in ((*read(ahead), *read(back)), (*read(ahead), None, None, None, None)):
        torch.library.opcheck(
            torch.ops.scanlab_mixer.before_scan, (x, *arguments, 3, 13), test_utils=("test_schema", "test_faketensor")
        )


def test_directions_of_different_sizes() -> None:
    assert_right(torch.randn(2, 50, 33), weights(33, rank=5, state=2), weights(33, rank=3, state=4))


@pytest.mark.parametrize(
    "wrong",
    [
        {"x": torch.randn(12, 16)},
        {"x": torch.randn(2, 16)},
        {"x": torch.randn(13, 15)},
        {"dt": torch.randn(15, 3)},
        {"conv_weight": torch.randn(15, 4)},
        {"conv_weight": torch.randn(16)},
        {"conv_bias": torch.randn(15)},
        {"conv_bias": torch.ones(16, dtype=torch.int32)},
    ],
)
def test_weights_that_do_not_fit_are_refused(wrong: dict[str, Tensor]) -> None:
    right = weights(16)
    given = {"conv_weight": right.conv_weight, "conv_bias": right.conv_bias, "x": right.x.weight, "dt": right.dt.weight}
    conv_weight, conv_bias, x, dt = (given | wrong).values()
    with pytest.raises(ProblemError):
        Direction(conv_weight, conv_bias, Packed(x), Packed(dt))


@pytest.mark.parametrize("x", [torch.randn(1, 40, 15), torch.randn(40, 16), torch.ones(1, 40, 16, dtype=torch.int32)])
def test_inputs_that_do_not_fit_are_refused(x: Tensor) -> None:
    with pytest.raises(ProblemError):
        mixer.before_scan(x, weights(16))
