"""Properties of the C++ kernel over problems, strides and configurations that hypothesis draws."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scanlab.contract.base import DTYPES
from scanlab.contract.problem import DIRECTIONS, LAYOUTS, ScanInputs, ScanProblem, make_inputs
from scanlab.contract.space import Config
from scanlab.contract.verify import reference_outputs, relative_error, verify
from scanlab_kernels.cpu.isa import supported_isas
from scanlab_kernels.selective_scan.native import backend as native

ISAS = supported_isas()
FLAGS = ("has_D", "has_z", "has_delta_bias", "delta_softplus", "has_initial_state")
STATES = st.one_of(st.integers(1, 20), st.sampled_from([31, 64, 255, 256]))
SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, -1e-40, 1e-30, -150.0, 150.0)

# The same examples everywhere and every time.
fixed = settings(derandomize=True, database=None, deadline=None)


@st.composite
def problems(draw: st.DrawFn) -> ScanProblem:
    """Small problems of every kind, of sizes that fit no vector, tile or block."""
    constant_B, constant_C = draw(st.tuples(st.booleans(), st.booleans()))
    groups = 1 if constant_B and constant_C else draw(st.sampled_from([1, 1, 2, 3]))
    state = draw(STATES)
    flags: dict[str, Any] = {flag: draw(st.booleans()) for flag in FLAGS}
    return ScanProblem(
        batch=draw(st.integers(1, 3)),
        dim=groups * draw(st.integers(1, 40 if state <= 20 else 5)),
        length=draw(st.integers(1, 70 if state <= 20 else 9)),
        state=state,
        groups=groups,
        dtype=draw(st.sampled_from(tuple(DTYPES))),
        direction=draw(st.sampled_from(DIRECTIONS)),
        gradients=draw(st.booleans()),
        constant_B=constant_B,
        constant_C=constant_C,
        complex_A=draw(st.booleans()),
        layout=draw(st.sampled_from(LAYOUTS)),
        **flags,
    )


@st.composite
def configs(draw: st.DrawFn, problem: ScanProblem) -> Config:
    """A configuration that is legal for the problem."""
    config = {choice.name: draw(st.sampled_from(choice.values)) for choice in native.backend.space.tunables}
    return config if native.forbids(config, problem) is None else config | {"exp": "exact", "time_chunks": 1}


def restrided(tensor: Tensor, how: str) -> Tensor:
    """A tensor of the same shape whose elements lie otherwise; expanded ones repeat the first along an axis."""
    if how == "gaps":
        return torch.stack((tensor, torch.full_like(tensor, math.nan)), dim=-1)[..., 0]
    if how == "reversed axes":
        axes = tuple(reversed(range(tensor.dim())))
        return tensor.permute(axes).contiguous().permute(axes)
    if how == "inside another":
        return torch.nn.functional.pad(tensor, (3, 2), value=math.nan)[..., 3:-2]
    if how == "expanded":
        return tensor[:1].expand(tensor.shape)
    return tensor


STRIDES = ("as made", "gaps", "reversed axes", "inside another", "expanded")


@given(st.data())
@settings(fixed, max_examples=120)
def test_agrees_with_the_reference_whatever_is_asked(data: st.DataObject) -> None:
    problem = data.draw(problems())
    config = data.draw(configs(problem))
    isa = data.draw(st.sampled_from(ISAS))
    inputs = tuple(
        each.with_tensors(
            **{
                # A bias of other channels would make some steps negative, and their states grow beyond float16.
                name: restrided(tensor, data.draw(st.sampled_from(STRIDES[:-1] if name == "delta_bias" else STRIDES)))
                for name, tensor in each.tensors().items()
            }
        )
        for each in make_inputs(problem, seed=data.draw(st.integers(0, 3)))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCANLAB_ISA", isa)
        verdict = verify(native.backend.build(problem, config), reference_outputs(problem, inputs))
    assert verdict.passed, f"{problem.key} {config} on {isa}: {verdict.reason}"


@given(st.data())
@settings(fixed, max_examples=120)
def test_special_values_travel_as_the_formula_says(data: st.DataObject) -> None:
    problem = ScanProblem(
        batch=1,
        dim=data.draw(st.integers(1, 35)),
        length=data.draw(st.integers(1, 40)),
        state=data.draw(st.integers(1, 18)),
        dtype=data.draw(st.sampled_from(["float32", "float64"])),
        has_initial_state=data.draw(st.booleans()),
        delta_softplus=data.draw(st.booleans()),
    )
    (inputs,) = make_inputs(problem)
    name = data.draw(st.sampled_from(tuple(inputs.tensors())))
    # A rate of 150, or a step of -150, gives a decay that overflows in float32 and not in float64.
    outgrows = name == "A" or (name == "delta" and not problem.delta_softplus)
    value = data.draw(st.sampled_from(SPECIAL[:-1] if outgrows else SPECIAL))
    tensor = inputs.tensors()[name]
    tensor.view(-1)[data.draw(st.integers(0, tensor.numel() - 1))] = value
    exp = data.draw(st.sampled_from(native.EXP_VARIANTS if problem.dtype == "float32" else ("exact",)))
    isa = data.draw(st.sampled_from(ISAS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCANLAB_ISA", isa)
        got = native.backend.build(problem, {"exp": exp})(inputs)
    want = reference_outputs(problem, (inputs,)).tensors
    for output, tensor in got._asdict().items():
        # Channel by channel, so that a large value in one hides nothing in another; below 1e-37 float32 may underflow.
        for channel, (mine, right) in enumerate(zip(tensor.unbind(1), want[output].unbind(1), strict=True)):
            underflow = torch.allclose(mine.double(), right, rtol=0, atol=1e-37, equal_nan=True)
            off = relative_error(mine, right)
            assert underflow or off <= 1e-4, f"{output}, channel {channel}: off by {off} with {name}={value} on {isa}"


@given(st.integers(1, 60), st.integers(1, 40), st.integers(2, 9), st.sampled_from(["forward", "reverse"]))
@settings(fixed, max_examples=25)
def test_a_scan_goes_on_from_its_last_state(length: int, dim: int, state: int, direction: str) -> None:
    problem = ScanProblem(batch=1, dim=dim, length=length + 1, state=state, dtype="float64", direction=direction)  # type: ignore[arg-type]
    (whole,) = make_inputs(problem)
    cut = length // 2 + 1
    parts = [slice(0, cut), slice(cut, length + 1)]
    expected = native.backend.build(problem)(whole)
    out: list[Tensor] = []
    h = torch.zeros_like(expected.last_state)
    for part in parts if direction == "forward" else reversed(parts):
        over_time = {name: getattr(whole, name)[..., part] for name in ("u", "delta", "B", "C", "z")}
        piece: ScanInputs = whole.with_tensors(**over_time, initial_state=h)
        result = native.backend.build(
            problem.replace(length=piece.u.shape[-1], has_initial_state=True), {"time_block": 16}
        )(piece)
        out.append(result.out)
        h = result.last_state
    joined = torch.cat(out if direction == "forward" else out[::-1], dim=-1)
    torch.testing.assert_close(joined, expected.out, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(h, expected.last_state, rtol=1e-12, atol=1e-14)
