"""The language model of the drop-in: what it is made of, what it refuses, and decoding token by token."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from scanlab.errors import InputError, ProblemError, UnavailableError
from scanlab.integrations.mamba_ssm.models.config_mamba import MambaConfig
from scanlab.integrations.mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel, _init_weights, create_block
from scanlab.integrations.mamba_ssm.utils.generation import GenerationMixin, decode, sample
from scanlab.runtime import dispatch

SMALL: dict[str, Any] = {"d_model": 16, "n_layer": 2, "vocab_size": 29, "ssm_cfg": {"d_state": 4}}
PROMPT = torch.tensor([[3, 1, 4], [1, 5, 9]])


@pytest.fixture(autouse=True)
def small_scan(monkeypatch):
    monkeypatch.setenv("SCANLAB_BACKEND", "two_phase:threads=1")
    dispatch.clear()
    yield
    dispatch.clear()


@pytest.fixture
def model() -> MambaLMHeadModel:
    torch.manual_seed(0)
    made = MambaLMHeadModel(MambaConfig(**SMALL)).eval()
    torch.nn.init.normal_(made.backbone.embedding.weight)  # fresh embeddings are so small that all tokens look alike
    return made


def greedily(model: MambaLMHeadModel, ids: Tensor, length: int) -> Tensor:
    """Every token from the whole sequence before it, without any state."""
    with torch.no_grad():
        while ids.shape[1] < length:
            ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), 1)
    return ids


def test_names_shapes_and_the_tied_head(model):
    assert model.lm_head.weight is model.backbone.embedding.weight
    assert model.lm_head.weight.shape == (32, 16)  # padded to a multiple of 8
    names = set(model.state_dict())
    assert {"backbone.layers.1.mixer.A_log", "backbone.norm_f.weight", "backbone.layers.0.norm.weight"} < names
    assert model(PROMPT).logits.shape == (2, 3, 32)
    torch.testing.assert_close(model(PROMPT, num_last_tokens=1).logits, model(PROMPT).logits[:, -1:])
    assert [state.shape for state in model.allocate_inference_cache(2, 9)[1]] == [(2, 32, 4), (2, 32, 4)]
    plain = MambaLMHeadModel(MambaConfig(**SMALL, tie_embeddings=False, rms_norm=False, fused_add_norm=False))
    assert plain.lm_head.weight is not plain.backbone.embedding.weight
    assert "backbone.norm_f.bias" in plain.state_dict()
    assert plain(PROMPT).logits.shape == (2, 3, 32)


def test_layers_of_another_kind_are_refused():
    with pytest.raises(UnavailableError, match="layer 0 is Mamba3.*has Mamba1, Mamba2, attention"):
        MambaLMHeadModel(MambaConfig(**SMALL | {"ssm_cfg": {"layer": "Mamba3"}}))


def test_layers_may_have_an_mlp(model):
    made = MambaLMHeadModel(MambaConfig(**SMALL | {"d_intermediate": 24}))
    assert made.state_dict()["backbone.layers.1.mlp.fc1.weight"].shape == (256, 16)
    assert {name.replace("layers.1", "layers.0") for name in made.state_dict() if "mlp" in name or "norm2" in name} == {
        f"backbone.layers.0.{name}.weight" for name in ("mlp.fc1", "mlp.fc2", "norm2")
    }
    made.generate(PROMPT, 6)
    made(PROMPT).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_a_block_is_made_by_the_arguments_of_both_releases():
    new = create_block(16, 0, {"d_state": 4}, layer_idx=3, rms_norm=True)
    old = create_block(16, {"d_state": 4}, layer_idx=3, rms_norm=True)
    assert new.layer_idx == old.layer_idx == new.mixer.layer_idx == 3
    assert {name: each.shape for name, each in new.state_dict().items()} == {
        name: each.shape for name, each in old.state_dict().items()
    }
    assert create_block(16).mixer.d_state == create_block(16, None).mixer.d_state == 16
    with pytest.raises(ProblemError, match="name all others"):
        create_block(16, {"d_state": 4}, 1e-5)  # type: ignore[arg-type]


def test_initial_weights_are_those_of_the_depth():
    block: Any = create_block(16)
    bias = block.mixer.dt_proj.bias.clone()
    torch.nn.init.ones_(block.mixer.out_proj.weight)
    head = torch.nn.Linear(16, 4)
    embedding = torch.nn.Embedding(500, 16)
    for module in (block, head, embedding):
        module.apply(functools.partial(_init_weights, n_layer=4, n_residuals_per_layer=2, initializer_range=0.5))
    assert torch.equal(block.mixer.dt_proj.bias, bias)
    assert not head.bias.any()
    assert 0.47 < embedding.weight.std() < 0.53
    bound = 1 / (32 * 8) ** 0.5  # of torch's own layers, by the square root of 8 branches
    assert 0.9 * bound < block.mixer.out_proj.weight.abs().max() <= bound


def test_fused_and_plain_norms_are_the_same(model):
    other = MambaLMHeadModel(MambaConfig(**SMALL, fused_add_norm=False))
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(PROMPT).logits, model(PROMPT).logits)


def test_stepping_gives_the_tokens_of_the_whole_sequence(model):
    expected = greedily(model, PROMPT, 12)
    assert len(expected.unique()) > 4
    made = model.generate(PROMPT, 12, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(made.sequences, expected)
    assert len(made.scores) == 9
    torch.testing.assert_close(made.scores[-1], model(expected[:, :-1]).logits[:, -1], rtol=1e-4, atol=1e-4)
    assert torch.equal(model.generate(PROMPT, 12, cg=True), expected)
    assert model.generate(PROMPT, 12, return_dict_in_generate=True).scores is None


def test_under_autocast_a_model_with_float32_weights_generates_and_trains(model):
    """The steps give the scores of the whole sequence, and both those of float32 to bfloat16's rounding."""
    ids = torch.cat((PROMPT, PROMPT), 1)
    with torch.no_grad():
        exact = model(ids).logits[:, -1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = model.generate(PROMPT, 7, teacher_outputs=ids, return_dict_in_generate=True, output_scores=True)
        loss = model(ids).logits.square().mean()
    torch.testing.assert_close(made.scores[-1].float(), exact, rtol=0.05, atol=0.05 * float(exact.abs().max()))
    loss.backward()
    under_autocast = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    model(ids).logits.square().mean().backward()
    for (name, parameter), grad in zip(model.named_parameters(), under_autocast, strict=True):
        assert (grad - parameter.grad).norm() < 0.05 * parameter.grad.norm(), name


def test_a_hook_on_the_head_is_called(model):
    model.lm_head.register_forward_hook(lambda module, arguments, out: 0 * out)
    assert not model(PROMPT).logits.any()


def test_a_model_is_written_and_read_again(model, tmp_path):
    model.save_pretrained(str(tmp_path / "saved"))
    again = MambaLMHeadModel.from_pretrained(str(tmp_path / "saved"))
    assert torch.equal(again(PROMPT).logits, model(PROMPT).logits)
    half = MambaLMHeadModel.from_pretrained(str(tmp_path / "saved"), dtype=torch.bfloat16)
    assert half(PROMPT).logits.dtype == torch.bfloat16
    torch.save({"backbone.norm_f.weight": 1.0}, tmp_path / "saved" / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin holds backbone\.norm_f\.weight: must be weights"):
        MambaLMHeadModel.from_pretrained(str(tmp_path / "saved"))


class Counting(torch.nn.Module, GenerationMixin):
    """Its next token is one more than the last, except that after 4 comes 0; it notes what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, Any]] = []

    def forward(self, ids: Tensor, position_ids: Tensor | None, inference_params: Any, num_last_tokens: int) -> Any:
        self.calls.append((ids.shape[1], None if position_ids is None else position_ids.tolist()))
        return SimpleNamespace(logits=torch.nn.functional.one_hot((ids[:, -1:] + 1) % 5, 8) * 3.0)


def test_how_a_model_is_called_and_when_it_ends(capsys):
    model = Counting()
    assert model.generate(torch.tensor([[1, 2]]), 6).tolist() == [[1, 2, 3, 4, 0, 1]]
    assert model.calls == [(2, None), (1, [[2]]), (1, [[3]]), (1, [[4]])]
    assert model.generate(torch.tensor([[1, 2], [2, 3]]), 9, eos_token_id=4).shape == (2, 9)  # not all at once
    assert model.generate(torch.tensor([[1, 2]]), 9, eos_token_id=4).tolist() == [[1, 2, 3, 4]]
    taught = torch.tensor([[9, 9, 1, 1]])
    assert model.generate(torch.tensor([[1, 2]]), 6, teacher_outputs=taught).tolist() == [[1, 2, 1, 1, 2, 3]]
    assert model.generate(torch.tensor([[1, 2]]), 5, repetition_penalty=100.0).tolist() == [[1, 2, 3, 4, 0]]
    told: list[list[list[int]]] = []
    streamer = SimpleNamespace(put=lambda ids: told.append(ids.tolist()), end=lambda: told.append([]))
    made = decode(torch.tensor([[1, 2]]), model, 4, vocab_size=4, streamer=streamer, enable_timing=True)
    assert told == [[[1, 2]], [[3]], [[0]], []]
    assert made.scores == ()
    assert "decoding time" in capsys.readouterr().out


def test_what_is_drawn():
    torch.manual_seed(0)
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(4000, 4)

    def shares(**options: Any) -> list[float]:
        drawn = sample(logits, **options)
        return [round(float((drawn == token).float().mean()), 2) for token in range(4)]

    assert shares() == [1.0, 0.0, 0.0, 0.0]
    assert shares(top_k=0) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    assert shares(top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert shares(top_k=0, top_p=0.6) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert shares(top_k=0, min_p=0.25) == pytest.approx([0.526, 0.316, 0.158, 0], abs=0.03)
    assert shares(top_k=100, temperature=0.5) == pytest.approx([0.685, 0.247, 0.062, 0.007], abs=0.03)
    with pytest.raises(ProblemError, match="top_p=1.5"):
        sample(logits, top_k=0, top_p=1.5)
    with pytest.raises(NotImplementedError):
        GenerationMixin().allocate_inference_cache(1, 2)
