"""The short convolution: official values, native against float64, gradients, state, torch's own checks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.golden_cases import GoldenCase, golden_cases
from helpers.instruction_sets import (
    DTYPES,
    INSTRUCTION_SETS,
    TOLERANCES,
    assert_close,
    gradients,
    instruction_set,
    wide,
)
from scanlab.contract.cpu import torch_threads
from scanlab.errors import ProblemError
from scanlab.runtime import ops as mixer
from scanlab_kernels.causal_conv1d.arguments import Activation

CONVOLUTIONS = {"native": mixer.causal_conv1d, "reference": mixer.in_torch()(mixer.causal_conv1d)}
UPDATES = {"native": mixer.causal_conv1d_update, "reference": mixer.in_torch()(mixer.causal_conv1d_update)}
LAYOUTS = ("dim-last", "length-last", "strided")

pytestmark = pytest.mark.usefixtures("native")


def sequences(batch: int, dim: int, length: int, layout: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random (batch, dim, length) in a layout."""
    if layout == "dim-last":
        return torch.randn(batch, length, dim, dtype=torch.float64).to(dtype).mT
    if layout == "length-last":
        return torch.randn(batch, dim, length, dtype=torch.float64).to(dtype)
    return torch.randn(batch, 2 * dim, 3 * length, dtype=torch.float64).to(dtype)[:, ::2, ::3]


@pytest.mark.parametrize("which", CONVOLUTIONS)
@pytest.mark.parametrize("case", golden_cases("conv"), ids=lambda case: case.name.partition("/")[2])
def test_official_values_and_gradients(case: GoldenCase, which: str) -> None:
    inputs = {name: case.tensor(name) for name in ("x", "w", "b", "s")}
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items() if tensor is not None}
    out = CONVOLUTIONS[which](
        inputs["x"], inputs["w"], inputs["b"], initial_states=inputs["s"], activation=case.options["activation"]
    )
    got = [out, *gradients([out], list(leaves.values()), [case.tensor("g")])]
    assert_close(got, [case.tensor("out"), *(case.tensor("d" + name) for name in leaves)], ["out", *leaves], 1e-6)
    states = mixer.final_states(inputs["x"], inputs["w"].shape[1], inputs["s"])
    assert torch.equal(states.double(), case.tensor("final_states"))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_a_compiler_torch_convolves_the_same(layout: str, activation: Activation, reverse: bool) -> None:
    x, weight, bias = sequences(2, 6, 11, layout), torch.randn(6, 4), torch.randn(6)
    other = torch.randn(6, 4)
    with mixer.in_torch():
        out = mixer.causal_conv1d(x, weight, bias, activation=activation, reverse=reverse)
        both = mixer.causal_conv1d_bidirectional(x, weight, bias, other, None, activation=activation)
    truth = mixer.in_torch()(mixer.causal_conv1d)(x, weight, bias, activation=activation, reverse=reverse)
    truths = (
        mixer.in_torch()(mixer.causal_conv1d)(x, weight, bias, activation=activation),
        mixer.in_torch()(mixer.causal_conv1d)(x, other, None, activation=activation, reverse=True),
    )
    for got, expected in zip((out, *both), (truth, *truths), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    isa=st.sampled_from(INSTRUCTION_SETS),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(0, 90)),
    width=st.integers(1, 8),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    activation=st.sampled_from([None, "silu"]),
    has_bias=st.booleans(),
    reverse=st.booleans(),
    extra=st.sampled_from([None, "initial_states", "seq_idx"]),
    seed=st.integers(0, 99),
)
def test_native_is_the_reference_in_float64(
    isa, shape, width, layout, dtype, activation, has_bias, reverse, extra, seed
) -> None:
    torch.manual_seed(seed)
    batch, dim, length = shape
    tensors: dict[str, Any] = {
        "x": sequences(batch, dim, length, layout, dtype),
        "weight": torch.randn(dim, width, dtype=dtype),
    }
    if has_bias:
        tensors["bias"] = torch.randn(dim, dtype=dtype)
    if extra == "initial_states":
        tensors["initial_states"] = torch.randn(batch, dim, width - 1, dtype=dtype)
    for tensor in tensors.values():
        tensor.requires_grad_()
    ids = torch.randint(-1, 3, (batch, length)).sort(1).values.int() if extra == "seq_idx" else None
    options: dict[str, Any] = {"seq_idx": ids, "activation": activation, "reverse": reverse}
    with instruction_set(isa):
        out = mixer.causal_conv1d(**tensors, **options)
        seed_gradient = torch.randn(out.shape, dtype=torch.float64).to(dtype)
        got = [out, *gradients([out], list(tensors.values()), [seed_gradient])]
    exact = {name: wide(tensor) for name, tensor in tensors.items()}
    expected = mixer.in_torch()(mixer.causal_conv1d)(**exact, **options)
    want = [expected, *gradients([expected], list(exact.values()), [seed_gradient])]
    assert_close(got, want, ["out", *tensors], TOLERANCES[dtype], least=1.0)
    assert [tensor.dtype for tensor in got] == [dtype] * len(got)
    if layout != "strided" and min(shape) > 1:
        assert out.stride() == tensors["x"].stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_directions_at_once(isa: str, layout: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = sequences(2, 37, 300, layout, dtype).requires_grad_()
    weights = [torch.randn(shape).requires_grad_() for shape in ((37, 4), (37,), (37, 4), (37,))]
    seeds = [torch.randn(x.shape) for _ in range(2)]
    outs = mixer.causal_conv1d_bidirectional(x, *weights, activation="silu")
    got = [*outs, *gradients(outs, [x, *weights], seeds)]
    exact = [wide(tensor) for tensor in (x, *weights)]
    forward, reverse = exact[1:3], exact[3:]
    expected = [
        mixer.in_torch()(mixer.causal_conv1d)(exact[0], *forward, activation="silu"),
        mixer.in_torch()(mixer.causal_conv1d)(exact[0].flip(-1), *reverse, activation="silu").flip(-1),
    ]
    want = [*expected, *gradients(expected, exact, [seed.to(dtype) for seed in seeds])]
    names = ["out", "out_reverse", "x", "weight", "bias", "weight_reverse", "bias_reverse"]
    assert_close(got, want, names, TOLERANCES[dtype])


@pytest.mark.parametrize(("shape", "layout"), [((1, 3, 9000), "length-last"), ((1, 20, 700), "dim-last")])
def test_long_sequences_give_the_same_bits_on_any_number_of_threads(shape, layout) -> None:
    torch.manual_seed(0)
    batch, dim, length = shape
    x = sequences(batch, dim, length, layout).requires_grad_()
    weights = [torch.randn(shape[1], 4).requires_grad_(), torch.randn(shape[1]).requires_grad_()]
    seed = torch.randn(shape)

    def run() -> list[Tensor]:
        out = mixer.causal_conv1d(x, *weights, activation="silu")
        return [out, *gradients([out], [x, *weights], [seed])]

    with torch_threads(1):
        alone = run()
    with torch_threads(2):
        together = run()
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    exact = [wide(tensor) for tensor in (x, *weights)]
    expected = mixer.in_torch()(mixer.causal_conv1d)(*exact, activation="silu")
    assert_close(alone, [expected, *gradients([expected], exact, [seed])], ["out", "x", "weight", "bias"], 2e-6)


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("length", [257, 513, 1025])
def test_one_step_beyond_whole_vectors_counts_once(isa: str, length: int, width: int) -> None:
    tensors = [sequences(2, 5, length, "length-last"), torch.randn(5, width), torch.randn(5)]
    leaves = [each.requires_grad_() for each in tensors]
    exact = [each.detach().double().requires_grad_() for each in leaves]
    seed = torch.randn(2, 5, length)
    for reverse in (False, True):
        got = gradients([mixer.causal_conv1d(*leaves, activation="silu", reverse=reverse)], leaves, [seed])
        with mixer.in_torch():
            want = gradients([mixer.causal_conv1d(*exact, activation="silu", reverse=reverse)], exact, [seed])
        assert_close(got, want, ["x", "weight", "bias"], 1e-6)


def test_gradcheck() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, dtype=torch.float64).mT.requires_grad_()
    weights = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in ((3, 4), (3,), (3, 4), (3,))]
    state = torch.randn(2, 3, 3, dtype=torch.float64).requires_grad_()

    def one(x: Tensor, weight: Tensor, bias: Tensor, initial_states: Tensor) -> Tensor:
        return mixer.causal_conv1d(x, weight, bias, initial_states=initial_states, activation="silu", reverse=True)

    def both(x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        return mixer.causal_conv1d_bidirectional(x, *weights, activation="silu")

    assert torch.autograd.gradcheck(one, (x, *weights[:2], state))
    assert torch.autograd.gradcheck(both, (x, *weights))


def test_torchs_own_checks_of_the_ops() -> None:
    x = sequences(2, 5, 7, "dim-last").requires_grad_()
    weight, bias = torch.randn(5, 4).requires_grad_(), torch.randn(5).requires_grad_()
    state = torch.randn(2, 5, 3).requires_grad_()
    ids = torch.zeros(2, 7, dtype=torch.int32)
    op = torch.ops.scanlab_mixer.causal_conv1d.default
    torch.library.opcheck(op, (x, weight, bias, weight, None, None, None, True))
    torch.library.opcheck(op, (x, None, None, weight, bias, None, state, False))
    torch.library.opcheck(op, (x, weight, bias, None, None, ids, None, True))
    step = torch.ops.scanlab_mixer.causal_conv1d_update.default
    rows = torch.tensor([1, 0], dtype=torch.int32)
    with torch.no_grad():
        torch.library.opcheck(step, (x[..., 0].detach(), state.detach(), weight.detach(), None, None, rows, True))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic: bool) -> None:
    def both(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        forward, reverse = mixer.causal_conv1d_bidirectional(2 * x, weight, bias, weight, None, activation="silu")
        return forward * reverse

    torch._dynamo.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    inputs = [sequences(2, 5, 7, "dim-last").requires_grad_(), torch.randn(5, 4).requires_grad_(), torch.randn(5)]
    got, want = compiled(*inputs), both(*inputs)
    assert torch.equal(got, want)
    for one, other in zip(
        torch.autograd.grad(got.sum(), inputs[:2]), torch.autograd.grad(want.sum(), inputs[:2]), strict=True
    ):
        assert torch.equal(one, other)


def test_inference_mode_and_threads_of_python() -> None:
    x, weight = sequences(1, 40, 500, "dim-last"), torch.randn(40, 4)
    want = mixer.causal_conv1d(x, weight)

    def infer(_: int) -> bool:
        with torch.inference_mode():
            return torch.equal(mixer.causal_conv1d(x, weight), want)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(infer, range(50)))


def test_nan_and_infinity_stay_in_their_window(isa: str) -> None:
    x = torch.zeros(1, 40, 20)
    x[0, 3, 5], x[0, 4, 6], x[0, 5, 0] = float("nan"), float("inf"), -200.0
    out = mixer.causal_conv1d(x, torch.ones(40, 4), activation="silu")
    assert out[0, 3].isnan().nonzero().flatten().tolist() == [5, 6, 7, 8]
    assert out[0, 4].isinf().nonzero().flatten().tolist() == [6, 7, 8, 9]
    assert out[0, 5, :4].abs().max() < 1e-30
    assert out.isfinite().sum() == out.numel() - 8


@pytest.mark.parametrize("which", UPDATES)
@pytest.mark.parametrize("case", golden_cases("conv_update"), ids=lambda case: case.name.partition("/")[2])
def test_official_values_of_updates(case: GoldenCase, which: str) -> None:
    state = case.tensor("state_before").clone()
    out = UPDATES[which](
        case.tensor("x"),
        state,
        case.tensor("w"),
        case.tensor("b"),
        activation=case.options["activation"],
        cache_seqlens=case.tensor("cache_seqlens"),
    )
    assert_close([out], [case.tensor("out")], ["out"], 1e-6)
    assert torch.equal(state.double(), case.tensor("state_after"))


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    isa=st.sampled_from(INSTRUCTION_SETS),
    batch=st.integers(1, 3),
    dim=st.integers(1, 70),
    steps=st.sampled_from([None, 1, 2, 3, 9]),
    width=st.sampled_from([1, 2, 4, 7]),
    spare=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    circular=st.booleans(),
    picked=st.booleans(),
    turned=st.booleans(),
)
def test_native_updates_are_the_reference_in_float64(
    isa, batch, dim, steps, width, spare, dtype, circular, picked, turned
) -> None:
    torch.manual_seed(dim)
    rows, slots = (batch + 2 if picked else batch), width - 1 + spare
    state = torch.randn(rows, dim, slots).to(dtype)
    if turned:
        state = state.mT.contiguous().mT
    x = torch.randn(batch, dim, *(() if steps is None else (steps,))).to(dtype)
    weight, bias = torch.randn(dim, width), torch.randn(dim)
    places = torch.randperm(rows)[:batch].int()
    if picked:
        places[0] = -1
    options: dict[str, Any] = {
        "activation": "silu",
        "cache_seqlens": torch.randint(0, 50, (batch,), dtype=torch.int32) if circular else None,
        "conv_state_indices": places if picked else None,
    }
    wide_state = state.double().clone()
    with instruction_set(isa):
        out = mixer.causal_conv1d_update(x, state, weight, bias, **options)
    want = mixer.in_torch()(mixer.causal_conv1d_update)(x.double(), wide_state, weight, bias, **options)
    assert_close([out], [want], ["out"], TOLERANCES[dtype])
    assert torch.equal(state.double(), wide_state)
    assert out.dtype == dtype


def test_steps_are_the_whole_sequence() -> None:
    x, weight, state = torch.randn(2, 33, 12), torch.randn(33, 4), torch.zeros(2, 33, 4)
    steps = [mixer.causal_conv1d_update(x[..., t], state, weight, activation="silu") for t in range(12)]
    whole = mixer.causal_conv1d(x, weight, activation="silu")
    assert_close([torch.stack(steps, -1)], [whole], ["out"], 1e-6)
    assert torch.equal(state, x[..., -4:])


X, WEIGHT, STATE = torch.randn(2, 6, 9), torch.randn(6, 4), torch.randn(2, 6, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X[0], WEIGHT), {}, "must be (batch, dim, length)"),
        ((X, WEIGHT[:5]), {}, "weight is (5, 4): must be (6, 4)"),
        ((X, torch.randn(6, 17)), {}, "(6, 17): must be (dim, width), with a width of 1 to 16"),
        ((X, WEIGHT, torch.randn(5)), {}, "bias is (5,)"),
        ((X.int(), WEIGHT), {}, "x is torch.int32"),
        ((X, WEIGHT), {"activation": "relu"}, "activation='relu'"),
        ((X, WEIGHT), {"initial_states": STATE}, "initial_states is (2, 6, 4): must be (2, 6, 3)"),
        ((X, WEIGHT), {"seq_idx": torch.zeros(2, 9)}, "must be int32"),
        ((X, WEIGHT), {"seq_idx": torch.zeros(2, 9).int(), "initial_states": STATE[..., 1:]}, "packed"),
        ((X, WEIGHT.to("meta")), {}, "weight is on meta"),
    ],
)
def test_what_does_not_fit_is_named(arguments, options, message) -> None:
    with pytest.raises(ProblemError) as caught:
        mixer.causal_conv1d(*arguments, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        ((X[:, :, 0], STATE[:1], WEIGHT), {}, ProblemError, "conv_state is (1, 6, 4): must be (2, 6, 4)"),
        ((X[:, :, 0], STATE[..., :2], WEIGHT), {}, ProblemError, "conv_state has 2 slots"),
        ((X[:, :, 0].double(), STATE, WEIGHT), {}, ProblemError, "must be the same"),
        ((X[:, :, 0], STATE, WEIGHT), {"conv_state_indices": torch.tensor([0, 1])}, ProblemError, "must be int32"),
        ((X[:, :, 0], STATE, WEIGHT), {"conv_state_indices": torch.tensor([0, 2]).int()}, IndexError, "2"),
    ],
)
def test_updates_that_do_not_fit_leave_the_state(arguments, options, kind, message) -> None:
    before = STATE.clone()
    with pytest.raises(kind) as caught:
        mixer.causal_conv1d_update(*arguments, **options)
    assert message in str(caught.value)
    assert torch.equal(STATE, before)
