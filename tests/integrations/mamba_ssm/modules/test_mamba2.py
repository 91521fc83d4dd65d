"""The drop-in's Mamba-2 modules: official parameters, decoding, packed sequences, and another implementation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import prune

from scanlab.errors import ProblemError, UnavailableError
from scanlab.integrations.mamba_ssm.models.config_mamba import MambaConfig
from scanlab.integrations.mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from scanlab.integrations.mamba_ssm.modules.mamba2 import Mamba2
from scanlab.integrations.mamba_ssm.modules.mamba2_simple import Mamba2Simple
from scanlab.integrations.mamba_ssm.modules.mamba_simple import Mamba
from scanlab.integrations.mamba_ssm.utils.generation import InferenceParams
from scanlab.runtime import ops as mixer_ops

SIZES = {"d_model": 16, "d_state": 8, "headdim": 4, "ngroups": 2}
VARIANTS = (
    {},
    {"rmsnorm": False},
    {"norm_before_gate": True},
    {"D_has_hdim": True, "bias": True, "conv_bias": False},
    {"d_ssm": 16, "dt_limit": (0.01, 0.05)},
)


def made(**options) -> Mamba2:
    torch.manual_seed(0)
    return Mamba2(**SIZES | options)


def test_parameters_have_the_official_names_and_shapes():
    layer = made(d_ssm=16)
    assert {name: tuple(each.shape) for name, each in layer.named_parameters()} == {
        "dt_bias": (4,),
        "A_log": (4,),
        "D": (4,),
        "in_proj.weight": (100, 16),
        "conv1d.weight": (48, 1, 4),
        "conv1d.bias": (48,),
        "norm.weight": (16,),
        "out_proj.weight": (16, 32),
    }
    assert all(getattr(each, "_no_weight_decay", False) for each in (layer.dt_bias, layer.A_log, layer.D))
    step = torch.nn.functional.softplus(layer.dt_bias)
    assert step.min() >= 1e-4
    assert step.max() <= 0.1 + 1e-6
    assert layer.A_log.min() >= 0
    assert layer.A_log.exp().max() <= 16


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_decoding_continues_a_prompt_as_one_pass_would(options):
    layer = made(layer_idx=0, **options)
    u = torch.randn(3, 11, 16)
    with torch.no_grad():
        whole = layer(u)
        cache = InferenceParams(max_seqlen=11, max_batch_size=3)
        parts = [layer(u[:, :2], inference_params=cache)]
        for token in range(2, 11):
            cache.seqlen_offset = token
            parts.append(layer(u[:, token : token + 1], inference_params=cache))
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


def test_sequences_one_after_another_are_those_of_a_batch_each():
    layer = made(layer_idx=0)
    u = torch.randn(1, 12, 16)
    ends = torch.tensor([0, 5, 7, 12], dtype=torch.int32)
    seq_idx = torch.repeat_interleave(torch.arange(3), ends.diff())[None].int()
    with torch.no_grad():
        alone = torch.cat([layer(part) for part in u.split([5, 2, 5], dim=1)], dim=1)
        packed = layer(u, seq_idx=seq_idx)
        cache = InferenceParams(max_seqlen=12, max_batch_size=3)
        prefilled = layer(u, cu_seqlens=ends, inference_params=cache)
        cache.seqlen_offset = 1
        token = torch.randn(3, 1, 16)
        stepped = layer(token, inference_params=cache)
        expected = [
            layer(torch.cat((part, token[i : i + 1]), 1))[:, -1:] for i, part in enumerate(u.split([5, 2, 5], 1))
        ]
    torch.testing.assert_close(packed, alone)
    torch.testing.assert_close(prefilled, alone)
    torch.testing.assert_close(stepped, torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_a_flat_batch_is_a_batch():
    layer = made()
    u = torch.randn(2, 7, 16)
    torch.testing.assert_close(layer(u.flatten(0, 1), seqlen=7), layer(u).flatten(0, 1))


def test_every_parameter_has_a_gradient():
    for layer in (made(), Mamba2Simple(16, d_state=8, headdim=4, learnable_init_states=True)):
        layer(torch.randn(2, 9, 16)).square().sum().backward()
        assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in layer.parameters())


def test_the_simple_layer_begins_with_the_states_it_learns():
    layer = Mamba2Simple(16, d_state=8, headdim=4, learnable_init_states=True)
    u = torch.randn(2, 9, 16)
    before = layer(u)
    torch.nn.init.normal_(layer.init_states)
    assert not torch.allclose(layer(u), before)
    plain = made(headdim=4, ngroups=1)
    simple = Mamba2Simple(16, d_state=8, headdim=4)
    simple.load_state_dict(plain.state_dict())
    torch.testing.assert_close(simple(u), plain(u))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"headdim": 5}, ProblemError, "headdim=5 does not divide the 32 channels"),
        ({"process_group": object()}, UnavailableError, "runs on one machine"),
    ],
)
def test_what_does_not_fit_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        made(**options)


def test_a_language_model_of_mamba_2_generates_as_it_reads():
    torch.manual_seed(0)
    config = MambaConfig(d_model=16, n_layer=2, vocab_size=32, ssm_cfg={"layer": "Mamba2", "d_state": 8, "headdim": 4})
    model = MambaLMHeadModel(config).eval()
    prompt = torch.randint(0, 32, (1, 5))
    with torch.no_grad():
        tokens: Any = model.generate(prompt, 9)
        read = model(tokens[:, :-1]).logits.argmax(-1)
    assert torch.equal(tokens[:, 5:], read[:, 4:])


def test_is_the_layer_of_transformers():
    bamba = pytest.importorskip("transformers.models.bamba.modeling_bamba")
    config = pytest.importorskip("transformers").BambaConfig(
        hidden_size=16,
        mamba_n_heads=8,
        mamba_d_head=4,
        mamba_d_state=8,
        mamba_n_groups=2,
        mamba_chunk_size=4,
        num_hidden_layers=1,
    )
    torch.manual_seed(0)
    theirs = bamba.BambaMixer(config, 0).eval()
    ours = made()
    ours.load_state_dict(theirs.state_dict())
    u = torch.randn(2, 11, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(u), theirs(u), rtol=1e-4, atol=1e-5)


def in_steps(layer, u):
    states = layer.allocate_inference_cache(len(u), u.shape[1])
    with torch.no_grad():
        return torch.cat([layer.step(token, *states)[0] for token in u.split(1, dim=1)], dim=1)


@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.parametrize("name", ["in_proj", "conv1d", "norm", "out_proj"])
def test_layers_with_hooks_are_called(name, norm_before_gate):
    layer, u = made(norm_before_gate=norm_before_gate), torch.randn(2, 9, 16)
    expected, calls = layer(u), []
    getattr(layer, name).register_forward_hook(lambda *_: calls.append(name))
    torch.testing.assert_close(layer(u), expected)
    assert calls == [name]
    torch.testing.assert_close(in_steps(layer, u), expected)
    assert len(calls) == 10
    getattr(layer, name).register_forward_hook(lambda module, arguments, out: 0.5 * out)
    assert not torch.allclose(layer(u), expected)
    torch.testing.assert_close(in_steps(layer, u), layer(u))


@pytest.mark.parametrize("name", ["in_proj", "conv1d", "out_proj"])
def test_a_pruned_weight_is_trained(name):
    layer, u = made(), torch.randn(2, 9, 16)
    prune.l1_unstructured(getattr(layer, name), "weight", 0.5)
    optimizer, losses = torch.optim.SGD(layer.parameters(), lr=0.1), []
    for _ in range(2):
        optimizer.zero_grad()
        loss = (layer(u) - u).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


def test_a_convolution_with_hooks_keeps_no_sequences_apart():
    layer = made()
    layer.conv1d.register_forward_hook(lambda *_: None)
    with pytest.raises(ProblemError, match="seq_idx is given, and conv1d has hooks"):
        layer(torch.randn(1, 9, 16), seq_idx=torch.zeros(1, 9, dtype=torch.int32))


def in_one_memory(conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor]:
    memory = torch.zeros(ssm_state.numel() + 1)
    return memory[: conv_state.numel()].view(conv_state.shape), memory[1:].view(ssm_state.shape)


def in_rows_of_one_memory(conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.zeros(len(conv_state), conv_state[0].numel() + ssm_state[0].numel())
    first, second = rows.split([conv_state[0].numel(), ssm_state[0].numel()], dim=1)
    return first.unflatten(1, conv_state.shape[1:]), second.unflatten(1, ssm_state.shape[1:])


def in_turns(conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor]:
    memory = torch.zeros(2 * ssm_state.numel())
    return memory[: 2 * conv_state.numel() : 2].view(conv_state.shape), memory[1::2].view(ssm_state.shape)


@pytest.mark.parametrize(
    "layer", [made, lambda: Mamba(16, d_state=8, use_fast_path=False), lambda: Mamba(16, d_state=8)]
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda conv, ssm: (conv, ssm[..., :-1]), "state is"),
        (lambda conv, ssm: (conv, ssm.long()), "state is torch.int64"),
        (lambda conv, ssm: (conv, ssm[:1]), "state is"),
        (lambda conv, ssm: (conv, ssm[:1].expand(ssm.shape)), "state has sizes .* overlap"),
        (lambda conv, ssm: (conv, ssm.to("meta")), "state is on meta"),
        (lambda conv, ssm: (conv[:1].expand(conv.shape), ssm), "conv_state has sizes .* overlap"),
        (in_one_memory, "conv_state and (ssm_)?state overlap"),
    ],
)
def test_a_call_that_is_refused_changes_no_state(layer, change, message):
    mixer = layer()
    states = change(*mixer.allocate_inference_cache(2, 8))
    cache: Any = InferenceParams(8, 2, key_value_memory_dict={0: states})
    mixer.layer_idx = 0
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        mixer.step(torch.randn(2, 1, 16), *states)
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        mixer(torch.randn(2, 3, 16), inference_params=cache)
    assert not any(state.any() for state in states if not state.is_meta)


@pytest.mark.parametrize("placed", [in_rows_of_one_memory, in_turns])
def test_states_may_alternate_in_one_memory(placed):
    layer, token = made(), torch.randn(2, 1, 16)
    apart = layer.allocate_inference_cache(2, 8)
    states = placed(*apart)
    with torch.no_grad():
        assert torch.equal(layer.step(token, *states)[0], layer.step(token, *apart)[0])
    for state, expected in zip(states, apart, strict=True):
        assert torch.equal(state, expected)


def test_a_fused_step_in_plain_pytorch_that_is_refused_changes_no_state():
    layer, token = Mamba(16, d_state=8), torch.randn(2, 1, 16)
    conv_state, ssm_state = layer.allocate_inference_cache(2, 8)
    with torch.no_grad(), mixer_ops.in_torch():
        for unfit in (ssm_state[:1].expand(ssm_state.shape), ssm_state[..., :-1], ssm_state.long()):
            with pytest.raises(ProblemError, match="state"):
                layer.step(token, conv_state, unfit)
    assert not conv_state.any()
