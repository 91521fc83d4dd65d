"""The fused front gives what its parts give: of any shape, on every instruction set, whatever the threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.instruction_sets import BFLOAT16_SETS, PRODUCT_SETS, instruction_set
from scanlab.contract.cpu import torch_threads
from scanlab.contract.verify import reference_outputs, verify
from scanlab.errors import ProblemError
from scanlab.runtime.front import mamba_front
from scanlab_kernels.linear.native import packed
from scanlab_kernels.linear.weights import PrepackedWeight
from scanlab_kernels.mamba_front import native
from scanlab_kernels.mamba_front.op import FrontInputs, FrontProblem, make_inputs, weights_of
from scanlab_kernels.mamba_front.weights import DirectionWeights, FrontWeights, InProjection

pytestmark = pytest.mark.usefixtures("native")

PLAIN = FrontProblem(batch=2, length=40, model=20, dim=16, rank=3, state=5)


def assert_right(problem: FrontProblem, inputs: tuple[FrontInputs] | None = None) -> None:
    """The fused front agrees with the formulas in float64."""
    verdict = verify(native.backend.build(problem), reference_outputs(problem, inputs or make_inputs(problem)))
    assert verdict.passed, f"{problem.key}: {verdict.reason}"


@pytest.mark.parametrize("isa", PRODUCT_SETS)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("shape", [(1, 32, 16), (3, 41, 40), (2, 100, 70), (40, 1, 24), (1, 197, 384), (1, 600, 200)])
def test_every_shape_on_every_instruction_set(isa: str, direction: str, shape: tuple[int, int, int]) -> None:
    batch, length, dim = shape
    with instruction_set(isa):
        assert_right(PLAIN.replace(batch=batch, length=length, dim=dim, direction=direction))


@pytest.mark.parametrize("width", [1, 2, 3, 7, 16])
@pytest.mark.parametrize(("rank", "state"), [(1, 1), (12, 16), (5, 40)])
def test_other_widths_ranks_and_states(width: int, rank: int, state: int) -> None:
    sizes = {"width": width, "rank": rank, "state": state, "length": 300, "dim": 33}
    assert_right(PLAIN.replace(direction="bidirectional", **sizes))


@pytest.mark.parametrize("model", [1, 7, 192])
def test_inputs_of_other_sizes_with_and_without_bias(model: int) -> None:
    assert_right(PLAIN.replace(model=model, dim=100, has_bias=model == 7))


def test_strided_inputs() -> None:
    (drawn,) = make_inputs(PLAIN.replace(model=48, dim=70))
    hidden = torch.randn(2, 80, 100)
    for view in (hidden[:, ::2, :48], hidden[:, :, 1:97:2], hidden.mT[:, :, :48], hidden[:, 3:60, 1:49]):
        inputs = drawn._replace(hidden=view)
        assert_right(FrontProblem.of(inputs), (inputs,))


def test_sequences_that_are_worked_on_in_turns() -> None:
    with torch_threads(1):
        for batch, length in ((11, 130), (1, 1500)):
            assert_right(PLAIN.replace(batch=batch, length=length, dim=50, direction="bidirectional"))


def test_the_bits_do_not_depend_on_the_threads() -> None:
    problem = PLAIN.replace(length=397, dim=200, direction="bidirectional")
    (inputs,), front, found = make_inputs(problem), native.backend.build(problem), []
    for threads in (1, 2, 3, 8):
        with torch_threads(threads):
            found.append(front(inputs))
    assert all(torch.equal(one, other) for each in found[1:] for one, other in zip(found[0], each, strict=True))


@pytest.mark.parametrize("isa", BFLOAT16_SETS)
@pytest.mark.parametrize("shape", [(1, 41, 16), (2, 50, 33), (1, 197, 384)])
@pytest.mark.parametrize("rank", [1, 12])
def test_bfloat16(isa: str, shape: tuple[int, int, int], rank: int) -> None:
    batch, length, dim = shape
    sizes = {"batch": batch, "length": length, "dim": dim, "rank": rank}
    with instruction_set(isa):
        assert_right(PLAIN.replace(dtype="bfloat16", direction="bidirectional", **sizes))


@pytest.mark.parametrize("wanted", range(1, 7))
def test_gradients_flow_to_every_weight_that_wants_one(wanted: int) -> None:
    (inputs,) = make_inputs(PLAIN.replace(has_bias=True))
    weight: Any = inputs[wanted]
    weight.requires_grad_()
    outputs = mamba_front(inputs.hidden, weights_of(inputs))
    (gradient,) = torch.autograd.grad(torch.stack([output.square().sum() for output in outputs]).sum(), [weight])
    assert gradient.abs().max() > 0
    with torch.no_grad():
        again = mamba_front(inputs.hidden, weights_of(inputs))
    for one, other in zip(again, outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_torch_knows_its_shapes() -> None:
    (inputs,) = make_inputs(PLAIN.replace(direction="bidirectional"))
    into, (forward, reverse) = weights_of(inputs).into, weights_of(inputs).directions

    def read(of: DirectionWeights) -> tuple[Tensor | None, ...]:
        return of.conv_weight, of.conv_bias, packed(of.x), packed(of.dt)

    projected = packed(into.x), into.x_bias, packed(into.z), None
    for arguments in ((*read(forward), *read(reverse)), (*read(forward), None, None, None, None)):
        torch.library.opcheck(
            torch.ops.scanlab_mixer.mamba_front,
            (inputs.hidden, *projected, *arguments, 3, 13),
            test_utils=("test_schema", "test_faketensor"),
        )


def direction(dim: int = 16, **given: Tensor) -> DirectionWeights:
    """Weights of a direction, some of them given."""
    shapes = {"conv_weight": (dim, 4), "conv_bias": (dim,), "x": (13, dim), "dt": (dim, 3)}
    conv_weight, conv_bias, x, dt = (given.get(name, torch.randn(shape)) for name, shape in shapes.items())
    return DirectionWeights(conv_weight, conv_bias, PrepackedWeight(x), PrepackedWeight(dt))


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
def test_weights_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ProblemError):
        direction(**wrong)


@pytest.mark.parametrize(
    ("weight", "bias"),
    [
        (torch.randn(33, 20), None),
        (torch.randn(32), None),
        (torch.randn(32, 20), torch.randn(31)),
        (torch.randn(32, 20), torch.ones(32, dtype=torch.int32)),
    ],
)
def test_projections_that_do_not_fit_are_refused(weight: Tensor, bias: Tensor | None) -> None:
    with pytest.raises(ProblemError):
        InProjection(PrepackedWeight(weight), bias)


@pytest.mark.parametrize(
    "hidden", [torch.randn(1, 40, 19), torch.randn(40, 20), torch.ones(1, 40, 20, dtype=torch.int32)]
)
def test_inputs_that_do_not_fit_are_refused(hidden: Tensor) -> None:
    with pytest.raises(ProblemError):
        mamba_front(hidden, weights_of(*make_inputs(PLAIN)))


def test_directions_that_do_not_fit_are_refused() -> None:
    into = InProjection(PrepackedWeight(torch.randn(32, 20)))
    with pytest.raises(ProblemError, match="15 channels: the projection has 16"):
        FrontWeights(into, direction(15))
    with pytest.raises(ProblemError, match="must be alike"):
        FrontWeights(into, direction(16), direction(16, conv_weight=torch.randn(16, 3)))
