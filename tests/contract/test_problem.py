"""The problem: its text, its numbers, the tensors made for it, and the refusals."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from scanlab.contract.base import DTYPES
from scanlab.contract.problem import DIRECTIONS, LAYOUTS, ScanInputs, ScanProblem, make_inputs
from scanlab.errors import ProblemError

SMALL = ScanProblem(batch=2, dim=6, length=9, state=3)

problems = st.builds(
    lambda groups, channels, **fields: ScanProblem(dim=groups * channels, groups=groups, **fields),
    groups=st.integers(1, 3),
    channels=st.integers(1, 3),
    batch=st.integers(1, 3),
    length=st.integers(1, 9),
    state=st.integers(1, 5),
    dtype=st.sampled_from(list(DTYPES)),
    direction=st.sampled_from(DIRECTIONS),
    gradients=st.booleans(),
    has_D=st.booleans(),
    has_z=st.booleans(),
    has_delta_bias=st.booleans(),
    delta_softplus=st.booleans(),
    has_initial_state=st.booleans(),
    constant_C=st.booleans(),
    complex_A=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
)


@settings(max_examples=200, deadline=None)
@given(problems)
def test_text_and_tensors_both_lead_back_to_the_problem(problem):
    assert ScanProblem.parse(problem.key) == problem
    inputs = make_inputs(problem)
    posed = ScanProblem.of(
        *inputs, delta_softplus=problem.delta_softplus, direction=problem.direction, gradients=problem.gradients
    )
    # A layout shows in the strides only where there is more than one channel and more than one step.
    assert posed.replace(layout=problem.layout) == problem
    if problem.dim > 1 and problem.length > 1:
        assert posed.layout == problem.layout


def test_made_inputs_are_reproducible_and_the_same_numbers_in_every_dtype_and_layout():
    for dtype, layout in (("float32", "dim_last"), ("float64", "length_last")):
        first = make_inputs(SMALL, seed=3)[0]
        again = make_inputs(SMALL.replace(dtype=dtype, layout=layout), seed=3)[0]
        for name, tensor in first.tensors().items():
            assert torch.equal(tensor, again.tensors()[name].to(torch.float32))
    assert not torch.equal(make_inputs(SMALL, seed=1)[0].u, make_inputs(SMALL, seed=2)[0].u)


def test_made_inputs_are_hard():
    inputs = make_inputs(ScanProblem(batch=1, dim=64, length=64))[0]
    delta = torch.nn.functional.softplus(inputs.delta + inputs.delta_bias[:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, inputs.A))
    assert decay.quantile(torch.tensor(0.9)) > 0.9
    assert decay.quantile(torch.tensor(0.1)) < 0.6
    assert ((inputs.A - inputs.A.round()).abs() > 1e-3).float().mean() > 0.9


def test_sizes_of_the_work():
    both = SMALL.replace(direction="bidirectional")
    assert SMALL.state_updates == 2 * 6 * 9 * 3
    assert both.state_updates == 2 * SMALL.state_updates
    # u, delta, z, out; B and C; A; D and delta_bias.
    assert SMALL.min_bytes == 4 * (4 * 2 * 6 * 9 + 2 * 2 * 3 * 9 + 6 * 3 + 2 * 6)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("batch=1,dim=4", "lacks length"),
        ("batch=1,dim=4,length=0", "length=0: must be a whole number of at least 1"),
        ("batch=1,dim=4,length=x", "length='x': must be a whole number"),
        (f"batch=1,dim=4,length={10**400}", "length is a number of 1329 bits: must be at most 9223372036854775807"),
        ("batch=1,dim=4,length=3,colour=red", "'colour=red' in .*: must be name=value"),
        ("batch=1,dim=4,length=3,dtype=int8", "dtype='int8': must be one of float32"),
        ("batch=1,dim=4,length=3,has_z=maybe", "must be true or false"),
        ("batch=1,dim=4,length=3,groups=3", "groups=3 does not divide dim=4"),
    ],
)
def test_a_bad_description_is_refused_with_the_cure(text, complaint):
    with pytest.raises(ProblemError, match=complaint):
        ScanProblem.parse(text)


def bad(**changes) -> ScanInputs:
    return make_inputs(SMALL)[0].with_tensors(**changes)


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        (bad(u=torch.zeros(2, 6)), r"u is float32 \(2, 6\): must be \(batch, dim, length\)"),
        (bad(u=torch.zeros(2, 6, 0)), "delta is float32"),
        (bad(delta=torch.zeros(2, 6, 8)), r"delta is float32 \(2, 6, 8\): must be like u"),
        (bad(z=torch.zeros(2, 6, 9, dtype=torch.float64)), "z is float64"),
        (bad(A=torch.zeros(5, 3)), r"A is float32 \(5, 3\): must be"),
        (bad(A=torch.zeros(6, 3, dtype=torch.float64)), "A is float64"),
        (bad(B=torch.zeros(2, 4, 9)), r"B is float32 \(2, 4, 9\): must be constant, "),
        (bad(C=torch.zeros(6, 4)), "C is .*must be constant, "),
        (bad(B=torch.zeros(2, 2, 3, 9)), "they must have as many groups"),
        (bad(D=torch.zeros(7)), "D is"),
        (bad(delta_bias=torch.zeros(6, dtype=torch.bfloat16)), "delta_bias is bfloat16"),
        (bad(initial_state=torch.zeros(2, 6, 4)), "initial_state is"),
        (bad(D=torch.zeros(6, device="meta")), "D is on meta and u on cpu"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_with_what_holds(inputs, complaint):
    with pytest.raises(ProblemError, match=complaint):
        ScanProblem.of(inputs, delta_softplus=True, direction="forward")


def test_directions_must_be_alike_and_as_many_as_asked_for():
    inputs = make_inputs(SMALL)[0]
    with pytest.raises(ProblemError, match="bidirectional takes two"):
        ScanProblem.of(inputs, delta_softplus=True, direction="bidirectional")
    without_D = inputs._replace(D=None)
    with pytest.raises(ProblemError, match="pose different problems"):
        ScanProblem.of(inputs, without_D, delta_softplus=True, direction="bidirectional")
