"""A token through a mixer: the op against its parts in float64, the states to the bit of their rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers.instruction_sets import DTYPES, TOLERANCES, assert_close
from scanlab.errors import ProblemError
from scanlab.runtime import ops as mixer

pytestmark = pytest.mark.usefixtures("native")


def token(batch: int, dim: int, state: int, rank: int, width: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random arguments of a step; the weights small enough that sums of bfloat16 tell something."""
    torch.manual_seed(dim)
    return {
        "projected": torch.randn(batch, 2 * dim).to(dtype),
        "conv_state": torch.randn(batch, dim, width).to(dtype),
        "state": torch.randn(batch, dim, state),
        "conv_weight": torch.randn(dim, width).to(dtype),
        "conv_bias": torch.randn(dim).to(dtype),
        "x_weight": (0.2 * torch.randn(rank + 2 * state, dim)).to(dtype),
        "dt_weight": (0.2 * torch.randn(dim, rank)).to(dtype),
        "dt_bias": torch.randn(dim),
        "A_log": torch.rand(dim, state),
        "D": torch.randn(dim),
    }


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "dim", "state", "rank", "width"), [(1, 64, 16, 4, 4), (3, 37, 5, 3, 2)])
def test_native_is_the_reference_in_float64(isa, batch, dim, state, rank, width, dtype, biased) -> None:
    given: dict[str, Tensor | None] = dict(token(batch, dim, state, rank, width, dtype))
    if not biased:
        given |= {"conv_bias": None, "dt_bias": None}
    exact = {name: None if each is None else each.double().clone() for name, each in given.items()}
    want = mixer.in_torch()(mixer.mixer_step)(**exact)
    got = mixer.mixer_step(**given)
    assert got.dtype == dtype
    # u, the selection and dt are each rounded on the way
    tolerance = 8 * max(TOLERANCES[dtype], TOLERANCES[torch.float32])
    names = ["conv_state", "state"]
    assert_close([got], [want], ["out"], tolerance)
    assert_close([given[name] for name in names], [exact[name] for name in names], names, tolerance)


def test_pytorch_serves_where_the_native_ops_may_not() -> None:
    given, other = (token(2, 24, 8, 3, 4, torch.float32) for _ in range(2))
    with mixer.in_torch():
        got = mixer.mixer_step(**given)
    assert torch.equal(got, mixer.in_torch()(mixer.mixer_step)(**other))


def test_torchs_own_checks_of_the_op_and_of_compiled_code() -> None:
    given, other = (token(2, 24, 8, 3, 4, torch.float32) for _ in range(2))
    torch.library.opcheck(torch.ops.scanlab_mixer.mixer_step.default, tuple(given.values()))
    torch._dynamo.reset()
    compiled = torch.compile(mixer.mixer_step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**given), mixer.mixer_step(**other))
    assert torch.equal(given["state"], other["state"])


def test_gradients_are_not_recorded() -> None:
    given = token(1, 8, 4, 2, 4, torch.float32)
    given["x_weight"].requires_grad_()
    assert not mixer.mixer_step(**given).requires_grad
    assert not given["state"].requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projected": torch.zeros(2, 15)}, "projected is (2, 15): must be (2, 16)"),
        ({"projected": torch.zeros(16)}, "projected is (16,)"),
        ({"conv_state": torch.zeros(2, 7, 4)}, "conv_state is (2, 7, 4)"),
        ({"conv_state": torch.zeros(2, 8, 2)}, "conv_state has 2 slots"),
        ({"conv_state": torch.zeros(2, 8, 4).bfloat16()}, "conv_state is torch.bfloat16"),
        ({"state": torch.zeros(2, 8, 3)}, "state is (2, 8, 3)"),
        ({"conv_bias": torch.zeros(7)}, "bias is (7,)"),
        ({"x_weight": torch.zeros(9, 8)}, "x_weight is (9, 8): must be (10, 8)"),
        ({"x_weight": torch.zeros(10, 8).double()}, "x_weight is torch.float64"),
        ({"dt_weight": torch.zeros(7, 2)}, "dt_weight is (7, 2)"),
        ({"dt_bias": torch.zeros(7)}, "dt_bias is (7,)"),
        ({"D": torch.zeros(7)}, "D is (7,)"),
    ],
)
def test_what_does_not_fit_leaves_the_states(changes, message) -> None:
    given = token(2, 8, 4, 2, 4, torch.float32) | changes
    before = {name: given[name].clone() for name in ("conv_state", "state")}
    with pytest.raises(ProblemError) as caught:
        mixer.mixer_step(**given)
    assert message in str(caught.value)
    assert all(torch.equal(given[name], each) for name, each in before.items())
