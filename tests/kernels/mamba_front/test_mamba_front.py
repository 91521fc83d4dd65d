"""What is scanned comes out of one native op as out of its parts: in both directions, of any shape, on every set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers.instruction_sets import INSTRUCTION_SETS, assert_close, instruction_set
from scanlab.contract.cpu import torch_threads
from scanlab.errors import ProblemError
from scanlab.runtime import ops as mixer
from scanlab.runtime import products
from scanlab.runtime.ops import DirectionWeights, PrepackedWeight, Projections
from scanlab_kernels.linear.native import multiplies, packed

pytestmark = pytest.mark.usefixtures("native")


@pytest.fixture(autouse=True)
def by_native_products(monkeypatch, native):
    """Products by the native kernels, whatever is fastest on this machine."""
    monkeypatch.setenv("SCANLAB_LINEAR", "native")
    products.clear()
    yield
    products.clear()


NAMES = ("u", "delta", "B", "C")


def weights(
    dim: int, *, width: int = 4, rank: int = 3, state: int = 5, dtype: torch.dtype = torch.float32, bias: bool = True
) -> DirectionWeights:
    """Random weights of one direction."""
    return DirectionWeights(
        torch.randn(dim, width).to(dtype),
        torch.randn(dim).to(dtype) if bias else None,
        PrepackedWeight((torch.randn(rank + 2 * state, dim) / dim**0.5).to(dtype)),
        PrepackedWeight((torch.randn(dim, rank) / rank**0.5).to(dtype)),
    )


def projections(dim: int, model: int = 20, *, dtype: torch.dtype = torch.float32, bias: bool = True) -> Projections:
    """Random weights of what is projected."""
    x, z = (PrepackedWeight((torch.randn(dim, model) / model**0.5).to(dtype)) for _ in range(2))
    x_bias, z_bias = (torch.randn(dim).to(dtype) if bias else None for _ in range(2))
    return Projections(x, z, x_bias, z_bias)


def wide(direction: DirectionWeights) -> DirectionWeights:
    """The same in float64, which no native op fuses."""
    bias = None if direction.conv_bias is None else direction.conv_bias.double()
    x, dt = (PrepackedWeight(packed.weight.double()) for packed in (direction.x, direction.dt))
    return DirectionWeights(direction.conv_weight.double(), bias, x, dt)


def wide_projections(into: Projections) -> Projections:
    """The same in float64."""
    x_bias, z_bias = (None if bias is None else bias.double() for bias in (into.x_bias, into.z_bias))
    return Projections(PrepackedWeight(into.x.weight.double()), PrepackedWeight(into.z.weight.double()), x_bias, z_bias)


def assert_right(hidden: Tensor, into: Projections, *directions: DirectionWeights, tolerance: float = 2e-6) -> None:
    got_z, got = mixer.mamba_front(hidden, into, *directions)
    want_z, want = mixer.mamba_front(hidden.double(), wide_projections(into), *map(wide, directions))
    assert len(got) == len(want) == len(directions)
    assert_close((got_z,), (want_z,), ("z",), tolerance)
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, NAMES, tolerance)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("shape", [(1, 32, 16), (3, 41, 40), (2, 100, 70), (40, 1, 24), (1, 197, 384), (1, 600, 200)])
def test_it_is_its_parts_in_float64(isa: str, both: bool, shape: tuple[int, int, int]) -> None:
    batch, length, dim = shape
    hidden, into = torch.randn(batch, length, 20), projections(dim)
    directions = [weights(dim), weights(dim, bias=False)][: 1 + both]
    assert mixer.is_fused(hidden, into, tuple(directions))
    with instruction_set(isa):
        assert_right(hidden, into, *directions)


@pytest.mark.parametrize("width", [1, 2, 3, 7, 16])
@pytest.mark.parametrize(("rank", "state"), [(1, 1), (12, 16), (5, 40)])
def test_other_widths_ranks_and_states(width: int, rank: int, state: int) -> None:
    options = {"width": width, "rank": rank, "state": state}
    assert_right(torch.randn(2, 300, 20), projections(33), weights(33, **options), weights(33, **options))


@pytest.mark.parametrize("model", [1, 7, 192])
def test_inputs_of_other_sizes_and_without_bias(model: int) -> None:
    into = projections(100, model, bias=False)
    assert_right(torch.randn(2, 40, model), into, weights(100), weights(100))


def test_strided_inputs() -> None:
    hidden, into = torch.randn(2, 80, 100), projections(70, 48)
    for view in (hidden[:, ::2, :48], hidden[:, :, 1:97:2], hidden.mT[:, :, :48], hidden[:, 3:60, 1:49]):
        assert_right(view, into, weights(70), weights(70))


def test_sequences_that_are_worked_on_in_turns() -> None:
    with torch_threads(1):
        assert_right(torch.randn(11, 130, 20), projections(50), weights(50), weights(50))
        assert_right(torch.randn(1, 1500, 20), projections(50), weights(50), weights(50))


def test_the_bits_do_not_depend_on_the_threads() -> None:
    hidden, into, directions = torch.randn(2, 397, 20), projections(200), (weights(200), weights(200))
    found = []
    for threads in (1, 2, 3, 8):
        with torch_threads(threads):
            z, selected = mixer.mamba_front(hidden, into, *directions)
            found.append([z, *(tensor for each in selected for tensor in each)])
    assert all(torch.equal(one, other) for each in found[1:] for one, other in zip(found[0], each, strict=True))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("shape", [(1, 41, 16), (2, 50, 33), (1, 197, 384)])
@pytest.mark.parametrize("rank", [1, 3, 12])
def test_bfloat16_fused_and_composed(isa: str, shape: tuple[int, int, int], rank: int) -> None:
    batch, length, dim = shape
    hidden, into = torch.randn(batch, length, 20).bfloat16(), projections(dim, dtype=torch.bfloat16)
    directions = tuple(weights(dim, rank=rank, dtype=torch.bfloat16) for _ in range(2))
    with instruction_set(isa):
        assert mixer.is_fused(hidden, into, directions) == multiplies(torch.bfloat16)
        # four roundings in a row: of x, of u, of what is selected from it, and of the steps
        assert_right(hidden, into, *directions, tolerance=1.5e-2)


def test_float64_is_composed() -> None:
    hidden, into, direction = torch.randn(1, 40, 20).double(), wide_projections(projections(16)), wide(weights(16))
    assert not mixer.is_fused(hidden, into, (direction,))
    assert_right(hidden, into, direction, tolerance=0.0)


@pytest.mark.parametrize("wanted", range(8))
def test_gradients_flow_to_every_weight_that_wants_one(wanted: int) -> None:
    hidden, into, direction = torch.randn(1, 40, 20), projections(16), weights(16)
    leaf = (
        *(direction.conv_weight, direction.conv_bias, direction.x.weight, direction.dt.weight),
        *(into.x.weight, into.x_bias, into.z.weight, into.z_bias),
    )[wanted]
    assert leaf is not None
    leaf.requires_grad_()
    z, (got,) = mixer.mamba_front(hidden, into, direction)
    (gradient,) = torch.autograd.grad(got.delta.square().sum() + z.square().sum(), leaf)
    assert gradient.abs().max() > 0
    with torch.no_grad():
        again_z, (again,) = mixer.mamba_front(hidden, into, direction)
    assert_close((again_z, *again), (z, *got), ("z", *NAMES), 1e-5)


def test_torch_knows_its_shapes() -> None:
    hidden, into, (ahead, back) = torch.randn(2, 20, 20), projections(16), (weights(16), weights(16))

    def read(of: DirectionWeights) -> tuple[Tensor | None, ...]:
        return of.conv_weight, of.conv_bias, packed(of.x), packed(of.dt)

    projected = packed(into.x), into.x_bias, packed(into.z), None
    for arguments in ((*read(ahead), *read(back)), (*read(ahead), None, None, None, None)):
        torch.library.opcheck(
            torch.ops.scanlab_mixer.mamba_front,
            (hidden, *projected, *arguments, 3, 13),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_directions_of_different_sizes() -> None:
    assert_right(torch.randn(2, 50, 20), projections(33), weights(33, rank=5, state=2), weights(33, rank=3, state=4))


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
        DirectionWeights(conv_weight, conv_bias, PrepackedWeight(x), PrepackedWeight(dt))


@pytest.mark.parametrize(
    "wrong",
    [
        {"z": torch.randn(15, 20)},
        {"z": torch.randn(16, 21)},
        {"x_bias": torch.randn(15)},
        {"z_bias": torch.randn(17)},
        {"z_bias": torch.ones(16, dtype=torch.int32)},
    ],
)
def test_projections_that_do_not_fit_are_refused(wrong: dict[str, Tensor]) -> None:
    given = {"x": torch.randn(16, 20), "z": torch.randn(16, 20), "x_bias": None, "z_bias": None}
    x, z, x_bias, z_bias = (given | wrong).values()
    with pytest.raises(ProblemError):
        Projections(PrepackedWeight(x), PrepackedWeight(z), x_bias, z_bias)


@pytest.mark.parametrize(
    "hidden", [torch.randn(1, 40, 19), torch.randn(40, 20), torch.ones(1, 40, 20, dtype=torch.int32)]
)
def test_inputs_that_do_not_fit_are_refused(hidden: Tensor) -> None:
    with pytest.raises(ProblemError):
        mixer.mamba_front(hidden, projections(16), weights(16))


def test_a_direction_of_other_channels_is_refused() -> None:
    with pytest.raises(ProblemError, match="15 channels: x has 16"):
        mixer.mamba_front(torch.randn(1, 40, 20), projections(16), weights(15))
