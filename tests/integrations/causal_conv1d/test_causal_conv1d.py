"""The official convolution by each of its names and signatures: goldens of the official code, and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.closeness import close
from helpers.golden_cases import STORED, golden_cases
from scanlab.errors import ProblemError
from scanlab.integrations.causal_conv1d import causal_conv1d_interface as conv
from scanlab.integrations.causal_conv1d import causal_conv1d_varlen, cpp_functions
from scanlab.integrations.mamba_ssm import cuda_extensions as extensions


@pytest.mark.parametrize("case", golden_cases("conv"), ids=lambda case: case.name)
def test_the_convolution_is_the_official_one_by_every_name(case):
    x, weight, bias, initial = (case.tensor(name) for name in ("x", "w", "b", "s"))
    activation = case.options["activation"]
    silu = activation is not None
    out, final = conv.causal_conv1d_fn(x, weight, bias, None, initial, True, activation=activation)
    close(out, case.tensor("out"))
    assert torch.equal(final.double(), case.tensor("final_states"))
    reference: Any = conv.causal_conv1d_ref(x, weight, bias, initial, activation=activation)
    close(reference, out)
    plain = () if initial is not None else ((silu,), (None, silu))
    for positional in (*plain, (None, initial, None, silu)):
        assert torch.equal(extensions.causal_conv1d_fwd(x, weight, bias, *positional), out)
    place, last = torch.empty_like(out), torch.empty_like(final)
    assert extensions.causal_conv1d_fwd(x, weight, bias, None, initial, place, last, silu) is None
    assert torch.equal(place, out)
    assert torch.equal(last, final)
    assert torch.equal(cpp_functions.causal_conv1d_fwd_function(x, weight, bias, None, initial, None, silu), out)


@pytest.mark.parametrize("first", [1, 8, 9, 10])  # steps of the first of two sequences
def test_final_states_continue_the_last_sequence(first):
    draw = torch.Generator().manual_seed(0)
    x, more = torch.randn(2, 5, 10, generator=draw), torch.randn(2, 5, 6, generator=draw)
    weight = torch.randn(5, 4, generator=draw)
    seq_idx = (torch.arange(16)[None] >= first).int().expand(2, 16).contiguous()
    last_only = seq_idx.clone()
    last_only[:, 10:] = seq_idx[:, 9:10]  # what follows belongs to the last sequence of x
    whole: Any = conv.causal_conv1d_fn(torch.cat((x, more), -1), weight, seq_idx=last_only)
    found: Any = conv.causal_conv1d_fn(x, weight, seq_idx=seq_idx[:, :10].contiguous(), return_final_states=True)
    final = found[1]
    torch.testing.assert_close(conv.causal_conv1d_fn(more, weight, initial_states=final), whole[..., 10:])
    place = torch.empty(2, 5, 3)
    extensions.causal_conv1d_fwd(x, weight, None, seq_idx[:, :10].contiguous(), None, torch.empty_like(x), place, False)
    assert torch.equal(place, final)


def test_gradients_of_the_convolution_by_every_signature():
    draw = torch.Generator().manual_seed(0)
    x, dout = (torch.randn(2, 5, 9, generator=draw) for _ in range(2))
    weight, bias = torch.randn(5, 4, generator=draw), torch.randn(5, generator=draw)
    initial, dfinal = (torch.randn(2, 5, 3, generator=draw) for _ in range(2))
    leaves: Any = [each.clone().requires_grad_() for each in (x, weight, bias, initial)]
    plain = F.silu(F.conv1d(F.pad(leaves[0], (3, 0)), leaves[1][:, None], leaves[2], groups=5))
    truth = torch.autograd.grad(plain, leaves[:3], dout)
    dx = torch.zeros_like(x)
    for arguments in ((dx, True), (None, dx, True), (None, None, None, dx, False, True)):
        found = extensions.causal_conv1d_bwd(x, weight, bias, dout, *arguments)
        assert found[0] is dx
        assert len(found) == (3 if len(arguments) < 6 else 4)
        for value, expected in zip(found, truth, strict=False):
            close(value, expected)
    out, final = conv.causal_conv1d_fn(*leaves[:3], initial_states=leaves[3], return_final_states=True)
    torch.testing.assert_close(final, torch.cat((initial, x), -1)[..., -3:])
    activated = F.silu(out)
    truth = torch.autograd.grad([activated, final], leaves, [dout, dfinal])
    out_silu = conv.causal_conv1d_fn(*leaves[:3], initial_states=leaves[3], activation="silu")
    torch.testing.assert_close(out_silu, activated)
    places = [torch.zeros_like(each) for each in (x, weight, bias, initial)]
    assert extensions.causal_conv1d_bwd(x, weight, bias, dout, None, initial, dfinal, *places, True) is None
    for value, expected in zip(places, truth, strict=True):
        close(value, expected)
    *grads, none = cpp_functions.causal_conv1d_bwd_function(x, weight, None, dout, None, None, None, None, False, True)
    assert grads[2] is none is None


def test_activation_in_the_place_of_the_first_release():
    x, weight = torch.rand(1, 3, 5), torch.rand(3, 4)
    first: Any = conv.causal_conv1d_fn(x, weight, None, "silu")
    named: Any = conv.causal_conv1d_fn(x, weight, activation="silu")
    assert torch.equal(first, named)
    with pytest.raises(NotImplementedError, match="activation='relu'"):
        conv.causal_conv1d_fn(x, weight, activation="relu")


@pytest.mark.parametrize("case", golden_cases("conv_update"), ids=lambda case: case.name)
def test_steps_of_the_convolution_by_every_signature(case):
    x, weight, bias, seqlens = (case.tensor(name) for name in ("x", "w", "b", "cache_seqlens"))
    silu = case.options["activation"] is not None
    place = torch.empty_like(x)
    activation = case.options["activation"]

    def into_place(state: Tensor) -> Tensor:
        assert extensions.causal_conv1d_update(x, state, weight, bias, place, silu, seqlens, None) is None
        return place

    calls = [
        lambda state: conv.causal_conv1d_update(x, state, weight, bias, activation, seqlens),
        lambda state: conv.causal_conv1d_update_ref(x, state, weight, bias, activation, seqlens),
        lambda state: extensions.causal_conv1d_update(x, state, weight, bias, silu, seqlens),
        lambda state: extensions.causal_conv1d_update(x, state, weight, bias, silu, seqlens, None),
        lambda state: cpp_functions.causal_conv1d_update_function(x, state, weight, bias, silu, seqlens, None),
        into_place,
    ]
    if seqlens is None:
        calls.append(lambda state: extensions.causal_conv1d_update(x, state, weight, bias, silu))
    for call in calls:
        state = case.tensor("state_before").clone()
        close(call(state), case.tensor("out"))
        assert torch.equal(state.double(), case.tensor("state_after"))


def test_an_unknown_call_says_which_there_are():
    for function, arguments in (
        (extensions.causal_conv1d_fwd, 6),
        (extensions.causal_conv1d_bwd, 9),
        (extensions.causal_conv1d_update, 9),
    ):
        with pytest.raises(ProblemError, match=f"{function.__name__} with {arguments} arguments"):
            function(*[None] * arguments)


def test_last_inputs_of_packed_sequences():
    x, bounds = (torch.from_numpy(STORED[f"varlen_states/{name}"]) for name in ("x", "cu_seqlens"))
    expected = torch.from_numpy(STORED["varlen_states/states_len3"])
    assert torch.equal(causal_conv1d_varlen.causal_conv1d_varlen_states(x, bounds, 3), expected)


@pytest.mark.parametrize("bounds", [[], [0, 9], [-1, 8], [0, 5, 3, 8], [[0, 8]], [0.0, 8.0], [False, True]])
def test_bounds_of_no_sequences_are_refused(bounds):
    with pytest.raises(ProblemError, match="cu_seqlens"):
        causal_conv1d_varlen.causal_conv1d_varlen_states(torch.randn(8, 4), torch.tensor(bounds), 3)


UNFIT = [
    (lambda fit: torch.zeros(3, 9), "must be float32"),
    (lambda fit: torch.zeros(5, *fit.shape), "must be float32"),
    (lambda fit: torch.zeros_like(fit, dtype=torch.int32), "is int32"),
    (lambda fit: torch.zeros_like(fit, device="meta"), "on meta"),
    (lambda fit: torch.zeros(1).expand(fit.shape), "elements of it overlap"),
    (lambda fit: torch.zeros_like(fit, requires_grad=True), "requires gradients"),
    (lambda fit: in_inference_mode(fit.shape), "was made in inference mode"),
]


def in_inference_mode(shape: torch.Size) -> Tensor:
    with torch.inference_mode():
        return torch.zeros(shape)


@pytest.mark.parametrize(("unfit", "message"), UNFIT)
def test_a_place_that_does_not_fit_is_refused_before_anything_is_written(unfit, message):
    x, weight, bias = torch.randn(2, 8, 9), torch.randn(8, 4), torch.randn(8)
    state, token = torch.zeros(2, 8, 4), torch.randn(2, 8)
    with pytest.raises(ProblemError, match=f"out .*{message}"):
        extensions.causal_conv1d_update(token, state, weight, bias, unfit(token), True, None, None)
    final = torch.zeros(2, 8, 3)
    with pytest.raises(ProblemError, match=f"out .*{message}"):
        extensions.causal_conv1d_fwd(x, weight, bias, None, None, unfit(x), final, True)
    out = torch.zeros_like(x)
    with pytest.raises(ProblemError, match=f"final_states_out .*{message}"):
        extensions.causal_conv1d_fwd(x, weight, bias, None, None, out, unfit(final), True)
    with pytest.raises(ProblemError, match=f"final_states_out .*{message}"):
        conv.causal_conv1d_fn(x, weight, bias, return_final_states=True, final_states_out=unfit(final))
    with pytest.raises(ProblemError, match=f"dx .*{message}"):
        extensions.causal_conv1d_bwd(x, weight, bias, x, unfit(x), True)
    names = ("dx", "dweight", "dbias", "dinitial_states")
    leaves = (x, weight, bias, final)
    for bad, name in enumerate(names):
        places = [unfit(each) if at == bad else torch.zeros_like(each) for at, each in enumerate(leaves)]
        with pytest.raises(ProblemError, match=f"{name} .*{message}"):
            extensions.causal_conv1d_bwd(x, weight, bias, x, None, final, None, *places, True)
        assert not any(place.any() for at, place in enumerate(places) if at != bad)
    assert not any(place.any() for place in (state, final, out))


def test_places_that_overlap_are_refused():
    x, weight = torch.randn(2, 8, 9), torch.randn(8, 4)
    memory = torch.zeros(2, 8, 12)
    with pytest.raises(ProblemError, match="out and final_states_out overlap"):
        extensions.causal_conv1d_fwd(x, weight, None, None, None, memory[..., :9], memory[..., 8:11], True)
    with pytest.raises(ProblemError, match="out and conv_state overlap"):
        extensions.causal_conv1d_update(x, memory, weight, None, memory[..., :9], True, None, None)
    assert not memory.any()
    out, final = memory.split([9, 3], dim=-1)
    extensions.causal_conv1d_fwd(x, weight, None, None, None, out, final, True)
    assert torch.equal(out, extensions.causal_conv1d_fwd(x, weight, None, True))
    assert torch.equal(final, x[..., -3:])


def test_gradients_of_weights_in_half_precision_are_written_in_float32_as_upstream_has_them():
    x, weight, bias = (torch.randn(shape, dtype=torch.bfloat16) for shape in ((2, 8, 9), (8, 4), (8,)))
    expected: Any = extensions.causal_conv1d_bwd(x, weight, bias, x, None, True)
    places = [torch.empty_like(x), *(torch.zeros_like(each, dtype=torch.float32) for each in (weight, bias))]
    extensions.causal_conv1d_bwd(x, weight, bias, x, None, None, None, *places, None, True)
    for place, gradient in zip(places, expected, strict=True):
        assert torch.equal(place, gradient.to(place.dtype))
