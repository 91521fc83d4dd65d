"""One decoding step: official values, both implementations against float64, the stored state to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.golden_cases import GoldenCase, golden_cases
from helpers.instruction_sets import DTYPES, INSTRUCTION_SETS, TOLERANCES, assert_close, instruction_set, wide
from scanlab.errors import ProblemError
from scanlab.runtime import ops as mixer

UPDATES = {"native": mixer.selective_state_update, "reference": mixer.in_torch()(mixer.selective_state_update)}

pytestmark = pytest.mark.usefixtures("native")


def step_inputs(batch: int, own: tuple[int, ...], groups: int | None, state: int, dtype: torch.dtype) -> dict[str, Any]:
    """Random arguments of a step but the state: `own` is (dim,) or (heads, dim)."""
    projection = (batch, state) if groups is None else (batch, groups, state)
    return {
        "x": torch.randn(batch, *own).to(dtype),
        "dt": torch.rand(batch, *own).to(dtype),
        "A": -torch.rand(*own, state) * 4,
        "B": torch.randn(projection).to(dtype),
        "C": torch.randn(projection).to(dtype),
        "D": torch.randn(own),
        "z": torch.randn(batch, *own).to(dtype),
        "dt_bias": torch.rand(own),
    }


@pytest.mark.parametrize("which", UPDATES)
@pytest.mark.parametrize("case", golden_cases("state_update"), ids=lambda case: case.name.partition("/")[2])
def test_official_values(case: GoldenCase, which: str) -> None:
    state = case.tensor("state_before").clone()
    arguments: list[Any] = [case.tensor(name) for name in ("x", "dt", "A", "B", "C", "D", "z", "dt_bias")]
    out = UPDATES[which](state, *arguments, dt_softplus=case.options["dt_softplus"])
    assert_close([out, state], [case.tensor("out"), case.tensor("state_after")], ["out", "state"], 1e-6)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    isa=st.sampled_from(INSTRUCTION_SETS),
    batch=st.integers(1, 3),
    heads=st.sampled_from([None, (1, 1), (4, 2), (3, 3)]),
    dim=st.sampled_from([1, 5, 16, 70]),
    state=st.sampled_from([1, 3, 16, 37, 64]),
    dtype=st.sampled_from(DTYPES),
    state_dtype=st.sampled_from(DTYPES),
    absent=st.sets(st.sampled_from(["D", "z", "dt_bias"])),
    softplus=st.booleans(),
    picked=st.booleans(),
    turned=st.booleans(),
    tied=st.booleans(),
    log_A=st.booleans(),
)
def test_native_is_the_reference_in_float64(
    isa, batch, heads, dim, state, dtype, state_dtype, absent, softplus, picked, turned, tied, log_A
) -> None:
    torch.manual_seed(dim * state)
    own = (dim,) if heads is None else (heads[0], dim)
    inputs = step_inputs(batch, own, None if heads is None else heads[1], state, dtype)
    inputs = {name: tensor for name, tensor in inputs.items() if name not in absent}
    if log_A:
        inputs["A"] = torch.log(-inputs["A"])
    if tied:
        inputs["A"] = inputs["A"][..., :1, :1].expand_as(inputs["A"])
    rows = batch + 2 if picked else batch
    before = torch.randn(rows, *own, state).to(state_dtype)
    if turned:
        before = before.mT.contiguous().mT
    indices = None
    if picked:
        indices = torch.randperm(rows)[:batch].int()
        indices[0] = -1
    stored, exact = before.clone(), before.double()
    options = {"dt_softplus": softplus, "state_batch_indices": indices, "log_A": log_A}
    with instruction_set(isa):
        out = mixer.selective_state_update(stored, **inputs, **options)
    want = mixer.in_torch()(mixer.selective_state_update)(
        exact, **{name: wide(tensor) for name, tensor in inputs.items()}, **options
    )
    narrow = {torch.float32} if torch.float64 not in (dtype, state_dtype) else {torch.float64}
    tolerance = max(TOLERANCES[each] for each in narrow | {dtype})
    assert_close(
        [out], [want], ["out"], tolerance
    )  # not the tolerance of the stored state: out does not see its rounding
    assert_close([stored], [exact], ["state"], max(TOLERANCES[each] for each in narrow | {state_dtype}))
    assert out.dtype == dtype
    if picked:
        untouched = torch.ones(rows, dtype=torch.bool)
        untouched[indices[indices >= 0].long()] = False
        assert torch.equal(stored[untouched], before[untouched])
        assert not out[0].any()


@pytest.mark.parametrize("heads", [None, 2])
def test_a_state_without_numbers_leaves_the_other_terms(heads: int | None) -> None:
    own = (8,) if heads is None else (heads, 8)
    inputs = step_inputs(3, own, heads, 0, torch.float32)
    out = mixer.selective_state_update(torch.zeros(3, *own, 0), **inputs)
    torch.testing.assert_close(out, inputs["D"] * inputs["x"] * F.silu(inputs["z"]))


def test_out_is_computed_before_the_state_is_rounded() -> None:
    state = torch.zeros(1, 16, 16, dtype=torch.bfloat16)
    inputs = step_inputs(1, (16,), None, 16, torch.float32)
    exact = state.double()
    for update in UPDATES.values():
        stored, wanted = state.clone(), exact.clone()
        out = update(stored, **inputs)
        want = mixer.in_torch()(mixer.selective_state_update)(
            wanted, **{name: wide(each) for name, each in inputs.items()}
        )
        assert_close([out], [want], ["out"], 1e-6)
        assert torch.equal(stored, wanted.to(torch.bfloat16))


def test_gradients_are_not_recorded_and_versions_are() -> None:
    inputs = step_inputs(1, (8,), None, 4, torch.float32)
    inputs["A"].requires_grad_()
    for update in UPDATES.values():
        state = torch.zeros(1, 8, 4)
        before = state._version
        out = update(state, **inputs)
        assert not out.requires_grad
        assert not state.requires_grad
        assert state._version > before


def test_torchs_own_checks_of_the_op_and_of_compiled_code() -> None:
    state, inputs = torch.randn(3, 8, 4), step_inputs(2, (8,), None, 4, torch.float32)
    rows = torch.tensor([2, -1], dtype=torch.int32)
    torch.library.opcheck(
        torch.ops.scanlab_mixer.selective_state_update.default, (state, *inputs.values(), True, rows, False)
    )

    def step(state: torch.Tensor) -> torch.Tensor:
        return mixer.selective_state_update(state, **inputs, state_batch_indices=rows)

    torch._dynamo.reset()
    compiled, other = torch.compile(step, fullgraph=True, backend="aot_eager"), state.clone()
    assert torch.equal(compiled(state), step(other))
    assert torch.equal(state, other)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"state": torch.zeros(2, 8)}, ProblemError, "state is (2, 8)"),
        ({"dt": torch.zeros(2, 7)}, ProblemError, "dt is (2, 7): must be (2, 8)"),
        ({"A": torch.zeros(8, 3)}, ProblemError, "A is (8, 3): must be (8, 4)"),
        ({"B": torch.zeros(2, 1, 4)}, ProblemError, "B (2, 1, 4)"),
        ({"C": torch.zeros(2, 5)}, ProblemError, "C is (2, 5)"),
        ({"D": torch.zeros(2, 8)}, ProblemError, "D is (2, 8)"),
        ({"z": torch.zeros(2, 8).int()}, ProblemError, "z is torch.int32"),
        ({"A": torch.zeros(8, 4, dtype=torch.complex64)}, ProblemError, "A is torch.complex64"),
        ({"state_batch_indices": torch.tensor([0, 1])}, ProblemError, "must be int32"),
        ({"state_batch_indices": torch.tensor([0, 9]).int()}, IndexError, "9"),
    ],
)
def test_what_does_not_fit_leaves_the_state(changes, kind, message) -> None:
    arguments = {"state": torch.ones(2, 8, 4), **step_inputs(2, (8,), None, 4, torch.float32), **changes}
    before = arguments["state"].clone()
    with pytest.raises(kind) as caught:
        mixer.selective_state_update(**arguments)
    assert message in str(caught.value)
    assert torch.equal(arguments["state"], before)


def test_groups_must_divide_the_heads() -> None:
    inputs = step_inputs(1, (4, 5), 3, 6, torch.float32)
    with pytest.raises(ProblemError, match="4 heads and 3 groups"):
        mixer.selective_state_update(torch.zeros(1, 4, 5, 6), **inputs)


@pytest.mark.parametrize("which", UPDATES)
def test_rates_may_be_given_as_mamba_keeps_them(which) -> None:
    inputs = step_inputs(2, (8,), None, 4, torch.float64)
    logarithm = torch.log(-inputs["A"].double())
    states = torch.randn(2, 8, 4, dtype=torch.float64).expand(2, 2, 8, 4).clone()
    plain = UPDATES[which](states[0], **inputs | {"A": -torch.exp(logarithm)})
    assert_close(
        [UPDATES[which](states[1], **inputs | {"A": logarithm}, log_A=True), states[1]],
        [plain, states[0]],
        ["out", "state"],
        1e-13,
    )


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("state", [1, 3, 17])
def test_a_growth_that_only_lanes_behind_the_states_have_changes_nothing(isa: str, state: int) -> None:
    inputs = step_inputs(2, (5,), None, state, torch.float32)
    inputs |= {"dt": torch.full((2, 5), -100.0), "dt_bias": None, "A": torch.full((5, state), -14.0)}
    states = torch.randn(2, 5, state).expand(2, 2, 5, state).clone()
    with instruction_set(isa):
        got = UPDATES["native"](states[0], **inputs, log_A=True)
    expected = UPDATES["reference"](states[1], **inputs, log_A=True)
    assert_close([got, states[0]], [expected, states[1]], ["out", "state"], 1e-5)
