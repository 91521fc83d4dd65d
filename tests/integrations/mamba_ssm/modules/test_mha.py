"""Attention of hybrid models: against plain attention, and step by step against the whole sequence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from scanlab.errors import ProblemError
from scanlab.integrations.mamba_ssm.models.config_mamba import MambaConfig
from scanlab.integrations.mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from scanlab.integrations.mamba_ssm.modules.mha import MHA
from scanlab.integrations.mamba_ssm.utils.generation import InferenceParams

KINDS: list[dict[str, Any]] = [
    {},
    {"num_heads_kv": 2, "softmax_scale": 0.3},
    {"rotary_emb_dim": 8, "d_conv": 4, "mlp_dim": 100},
    {"rotary_emb_dim": 4, "rotary_emb_interleaved": True, "num_heads_kv": 1, "qkv_proj_bias": False},
]


@pytest.fixture(params=KINDS, ids=["plain", "grouped", "rotary-conv-mlp", "interleaved"])
def attention(request: pytest.FixtureRequest) -> MHA:
    torch.manual_seed(0)
    return MHA(32, 4, causal=True, layer_idx=0, **request.param).eval()


def test_plain_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours = MHA(32, 4, causal=True)
    theirs = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.in_proj.weight)
        theirs.in_proj_bias.copy_(ours.in_proj.bias)
        theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    x = torch.randn(2, 7, 32)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(7)
    want, _ = theirs(x, x, x, attn_mask=mask, is_causal=True)
    torch.testing.assert_close(ours(x), want)


@pytest.mark.parametrize("interleaved", [False, True])
def test_scores_of_rotated_heads_depend_on_the_distance_alone(interleaved: bool) -> None:
    rotary = MHA(16, 1, rotary_emb_dim=8, rotary_emb_interleaved=interleaved).rotary_emb
    q, k = torch.randn(2, 1, 1, 1, 16)
    scores = [(rotary(q, 5 + shift) * rotary(k, 2 + shift)).sum() for shift in (0, 9)]
    torch.testing.assert_close(scores[0], scores[1])
    torch.testing.assert_close(rotary(q, 0), q)
    assert torch.equal(rotary(q, 3)[..., 8:], q[..., 8:])


@torch.no_grad()
def test_a_prompt_and_steps_give_what_the_whole_sequence_gives(attention: MHA) -> None:
    x = torch.randn(2, 9, 32)
    params = InferenceParams(max_seqlen=9, max_batch_size=2)
    outs = []
    for begin, end in ((0, 5), (5, 6), (6, 7), (7, 9)):
        params.seqlen_offset = begin
        outs.append(attention(x[:, begin:end], inference_params=params))
    torch.testing.assert_close(torch.cat(outs, dim=1), attention(x), rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_parameter(attention: MHA) -> None:
    attention(torch.randn(2, 6, 32)).square().sum().backward()
    assert all(each.grad is not None and bool(each.grad.abs().sum() > 0) for each in attention.parameters())


@pytest.mark.parametrize(
    ("options", "params", "what"),
    [
        ({"num_heads": 5}, None, "num_heads=5 does not divide embed_dim=32"),
        ({"num_heads": 4, "num_heads_kv": 3}, None, "num_heads_kv=3 does not divide"),
        ({"num_heads": 4}, InferenceParams(8, 1), "give MHA its layer_idx"),
        ({"num_heads": 4, "layer_idx": 0}, InferenceParams(2, 1), "the cache has room for 1 of 2"),
        (
            {"num_heads": 4, "layer_idx": 0},
            InferenceParams(8, 1, lengths_per_sample=torch.ones(1)),
            "samples have one length",
        ),
    ],
)
def test_what_does_not_fit_is_said(options: dict[str, Any], params: InferenceParams | None, what: str) -> None:
    with pytest.raises(ProblemError, match=what):
        MHA(32, **options)(torch.randn(1, 4, 32), inference_params=params)


def test_a_hybrid_language_model_generates_what_it_computes() -> None:
    torch.manual_seed(0)
    config = MambaConfig(
        d_model=32,
        n_layer=3,
        vocab_size=50,
        ssm_cfg={"layer": "Mamba2", "d_state": 8, "headdim": 8},
        attn_layer_idx=[1],
        attn_cfg={"causal": True, "num_heads": 4, "rotary_emb_dim": 8, "d_conv": 4},
    )
    model = MambaLMHeadModel(config).eval()
    assert isinstance(model.backbone.layers[1].mixer, MHA)
    made = model.generate(torch.randint(50, (2, 5)), max_length=12)
    assert isinstance(made, torch.Tensor)
    with torch.no_grad():
        logits = model(made).logits
    assert torch.equal(logits[:, 4:-1].argmax(-1), made[:, 5:])
    assert F.cross_entropy(logits.flatten(0, 1), made.flatten()).isfinite()
