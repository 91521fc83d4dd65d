"""Patched models of transformers against themselves unpatched: small random weights, every family, whole and cached."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import scanlab
from helpers.observe_transformers import generated, trained, whole
from scanlab.contract.cpu import torch_threads
from scanlab.errors import ProblemError, UnavailableError
from scanlab.integrations import transformers as integration
from scanlab.integrations.notices import warn_once
from scanlab.integrations.transformers import patch, unpatch

transformers = pytest.importorskip("transformers")

TOKENS = {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 3}
HYBRID = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "mamba_d_state": 8,
    "mamba_dt_rank": 5,
    "use_mamba_kernels": False,
}
EXPERTS = {"num_key_value_heads": 2, "num_experts": 2, "expert_layer_period": 2, "expert_layer_offset": 1}
HEADS = {"num_key_value_heads": 4, "attention_hidden_size": 64, "attention_head_dim": 16, "n_mamba_heads": 2}
FAMILIES = {
    "Mamba": SIZES,
    "Mamba with biases": SIZES | {"use_bias": True},
    "Mamba without convolution bias": SIZES | {"use_conv_bias": False},
    "FalconMamba": SIZES,
    "Jamba": HYBRID | EXPERTS | {"num_hidden_layers": 4},
    "Zamba": HYBRID | HEADS | {"num_hidden_layers": 6},
}

every_family = pytest.mark.parametrize("family", FAMILIES)
masked_or_not = pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])


@pytest.fixture(autouse=True)
def unpatched() -> Iterator[None]:
    """Every test begins and ends with transformers as it came, and takes one thread: its tensors are small."""
    unpatch()
    with torch_threads(1):
        yield
    unpatch()


def small(family: str) -> Any:
    """A causal language model whose every parameter is random: zeros and ones hide what is left out."""
    name = family.split()[0]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**FAMILIES[family], **TOKENS)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def prompt(masked: bool) -> dict[str, Tensor]:
    """Three prompts, of which two are padded on the left where `masked`."""
    torch.manual_seed(1)
    ids = torch.randint(3, 99, (3, 13))
    mask = torch.ones_like(ids)
    if masked:
        mask[0, :4] = mask[2, :9] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def error(got: Tensor, want: Tensor) -> float:
    """The largest error as a share of the largest value."""
    largest = float(want.detach().abs().max())
    return float((got - want).detach().abs().max()) / (largest if largest > 0 else 1.0)


def logits_and_gradients(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    out = model(**inputs, labels=inputs["input_ids"], use_cache=False)
    out.loss.backward()
    return out.logits, {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


@masked_or_not
@every_family
def test_logits_and_gradients(family: str, masked: bool) -> None:
    model = small(family).train()
    want, want_gradients = logits_and_gradients(model, prompt(masked))
    with patch():
        got, gradients = logits_and_gradients(model, prompt(masked))
    assert error(got, want) < 2e-6
    assert gradients.keys() == want_gradients.keys()
    for name in gradients:
        assert error(gradients[name], want_gradients[name]) < 5e-5, name


@pytest.mark.parametrize(("beams", "masked"), [(1, False), (1, True), (2, True)])
@every_family
def test_generation(family: str, beams: int, masked: bool) -> None:
    model = small(family)
    asked = {"max_new_tokens": 7, "num_beams": beams, "output_scores": True, "return_dict_in_generate": True}
    want = model.generate(**prompt(masked), **asked, do_sample=False)
    patch(model)
    got = model.generate(**prompt(masked), **asked, do_sample=False)
    assert torch.equal(got.sequences, want.sequences)
    assert max(error(one, other) for one, other in zip(got.scores, want.scores, strict=True)) < 5e-6


@every_family
def test_a_prompt_shorter_than_the_convolution(family: str) -> None:
    model = small(family)
    ids = torch.tensor([[7], [9]])
    asked = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
    # without a cache: with one, older versions get such a prompt wrong unpatched
    want = model.generate(ids, **asked, use_cache=False)
    with patch():
        assert torch.equal(model.generate(ids, **asked), want)


@masked_or_not
@every_family
def test_bfloat16_is_as_near_to_float32_as_unpatched(family: str, masked: bool) -> None:
    model = small(family)
    with torch.no_grad():
        exact = model(**prompt(masked)).logits
        model.bfloat16()
        want = model(**prompt(masked)).logits.float()
        patch(model)
        got = model(**prompt(masked)).logits.float()
    assert error(got, exact) < max(1.2 * error(want, exact), 2e-2)
    asked = {"max_new_tokens": 4, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    assert model.generate(**prompt(masked), **asked).scores[3].isfinite().any()


@pytest.mark.parametrize("family", ["Mamba", "FalconMamba"])
def test_gradients_flow_through_the_cache(family: str) -> None:
    model = patch_of(small(family))
    ids = prompt(masked=False)["input_ids"]
    whole = model(ids, use_cache=False).logits[:, -1]
    wanted = torch.autograd.grad(whole.sum(), list(model.parameters()))
    cache = model(ids[:, :-1], use_cache=True).cache_params
    last = step(model, ids[:, -1:], cache)
    assert error(last, whole) < 2e-6
    for one, other in zip(torch.autograd.grad(last.sum(), list(model.parameters())), wanted, strict=True):
        assert error(one, other) < 2e-5


def patch_of(model: Any) -> Any:
    patch(model)
    return model


def step(model: Any, ids: Tensor, cache: Any) -> Tensor:
    """The last logits of `ids` after those in the cache, whichever way this version says that there are some."""
    named = {} if hasattr(cache, "has_previous_state") else {"cache_position": torch.tensor([12])}
    return model(ids, cache_params=cache, use_cache=True, **named).logits[:, -1]


@torch.no_grad()
def test_several_tokens_after_cached_ones_are_as_unpatched_or_refused() -> None:
    model, ids = small("Mamba"), prompt(masked=False)["input_ids"]
    caches = [model(ids[:, :-5], use_cache=True).cache_params for _ in range(2)]
    named = {} if hasattr(caches[0], "has_previous_state") else {"cache_position": torch.arange(8, 13)}

    def several(cache: Any) -> Tensor:
        return model(ids[:, -5:], cache_params=cache, use_cache=True, **named).logits

    if isinstance(getattr(getattr(caches[0], "layers", [None])[0], "conv_states", None), dict):
        want = several(caches[0])
        patch(model)
        assert error(several(caches[1]), want) < 2e-6
    else:
        patch(model)
        with pytest.raises(ProblemError, match="5 tokens after cached ones"):
            several(caches[1])


def forwards(model: nn.Module) -> list[Any]:
    return [module.forward.__module__ for module in model.modules() if type(module).__name__ == "MambaMixer"]


def test_a_patch_is_of_one_model_or_of_all_and_is_taken_back() -> None:
    model, other = small("Mamba"), small("Mamba")
    theirs = forwards(model)
    assert integration.__name__ not in theirs
    ours = [integration.__name__] * len(theirs)
    patch(model)
    patch(model)
    assert (forwards(model), forwards(other)) == (ours, theirs)
    assert forwards(copy.deepcopy(model)) == ours
    patch()
    with patch(), patch(model):
        pass
    assert (forwards(model), forwards(other)) == (ours, ours)
    unpatch(model)
    assert forwards(model) == ours
    unpatch()
    unpatch()
    assert (forwards(model), forwards(other)) == (theirs, theirs)
    with patch(other):
        assert (forwards(model), forwards(other)) == (theirs, ours)
    assert forwards(other) == theirs


def test_a_model_patched_alone_stays_patched_when_the_classes_are_not() -> None:
    model = small("Mamba")
    with patch():
        patch(model)
    assert forwards(model) == [integration.__name__] * 3
    unpatch(model)
    assert integration.__name__ not in forwards(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logits_of_a_patched_model_are_served_too(dtype: torch.dtype) -> None:
    model = small("Mamba").to(dtype)
    hidden = torch.randn(2, 3, SIZES["hidden_size"], dtype=dtype)
    with torch.no_grad():
        want = model.lm_head(hidden)
        with patch(model):
            copied = copy.deepcopy(model)
            for each in (model, copied):
                assert each.lm_head.forward.__module__ == integration.__name__
                torch.testing.assert_close(each.lm_head(hidden), want)
            copied.lm_head.weight.zero_()
            assert not copied.lm_head(hidden).any()
    assert "forward" not in vars(model.lm_head)
    unpatch(copied)
    assert "forward" not in vars(copied.lm_head)


def test_a_layer_of_logits_that_does_more_is_called() -> None:
    model = small("Mamba")
    handle = model.lm_head.register_forward_hook(lambda layer, given, out: out + 1)
    with torch.no_grad(), patch(model):
        hidden = torch.randn(1, 2, SIZES["hidden_size"])
        assert "forward" not in vars(model.lm_head)
        got = model.lm_head(hidden)
    handle.remove()
    torch.testing.assert_close(got, model.lm_head(hidden) + 1)


def test_what_served_is_explained() -> None:
    with torch.no_grad(), patch():
        small("Mamba")(torch.ones(1, 37, dtype=torch.long))
    assert "dim=64,length=37,state=8" in scanlab.explain()


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(ProblemError, match="patch got 5: must be a module"):
        patch(5)  # type: ignore[arg-type]


def test_a_model_without_such_layers_is_refused() -> None:
    for action in (patch, unpatch):
        with pytest.raises(ProblemError, match="Linear has no mixer that this patch serves: .* MambaMixer,"):
            action(nn.Linear(2, 2))


def test_a_forward_that_something_else_replaced_is_left_alone() -> None:
    model = small("Mamba")
    mixer = model.backbone.layers[1].mixer
    mixer.forward = mixer.forward
    with pytest.raises(ProblemError, match="MambaMixer 1 has a forward of its own"):
        patch(model)
    assert not any("forward" in vars(layer.mixer) for layer in model.backbone.layers if layer.mixer is not mixer)
    unpatch(model)
    assert "forward" in vars(mixer)


def test_another_activation_runs_unpatched_and_is_said_once_or_is_an_error(caplog, monkeypatch) -> None:
    monkeypatch.setitem(FAMILIES, "Mamba", SIZES | {"hidden_act": "gelu"})
    model = small("Mamba")
    with torch.no_grad():
        want = model(**prompt(masked=True)).logits
        patch(model)
        warn_once.cache_clear()
        for _ in range(2):
            assert torch.equal(model(**prompt(masked=True)).logits, want)
        (said,) = (record for record in caplog.records if record.name == "scanlab" and "MambaMixer" in record.message)
        assert said.levelno == logging.WARNING
        assert "its activation is gelu" in said.message
        monkeypatch.setenv("SCANLAB_STRICT", "1")
        warn_once.cache_clear()
        with pytest.raises(UnavailableError, match="SCANLAB_STRICT=1"):
            model(**prompt(masked=True))


def test_a_dt_projection_of_another_kind_is_called_as_it_is() -> None:
    class Adapted(nn.Linear):
        def forward(self, values: Tensor) -> Tensor:
            return super().forward(values) + 0.25

    model = small("Mamba")
    changed = copy.deepcopy(model)
    for one, other in zip(model.backbone.layers, changed.backbone.layers, strict=True):
        one.mixer.dt_proj.__class__ = Adapted
        with torch.no_grad():
            other.mixer.dt_proj.bias.add_(0.25)
    with torch.no_grad(), patch():
        assert error(model(**prompt(False)).logits, changed(**prompt(False)).logits) < 2e-6


@pytest.mark.parametrize("version", ["4.47.1", "6.0.0"])
def test_other_versions_are_refused_by_name(version: str, monkeypatch) -> None:
    monkeypatch.setattr("transformers.__version__", version)
    integration.mixer_classes.cache_clear()
    with pytest.raises(UnavailableError, match=f"transformers {version} is installed: .* 4.48 up to 5.x"):
        patch()
    integration.mixer_classes.cache_clear()


def test_without_transformers_the_cure_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    integration.mixer_classes.cache_clear()
    with pytest.raises(UnavailableError, match="pip install 'transformers>=4.48'"):
        patch()
    monkeypatch.undo()
    integration.mixer_classes.cache_clear()


def test_importing_the_integration_does_not_import_transformers() -> None:
    program = "import sys, scanlab.integrations.transformers; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def under_autocast(model: Any, padded: bool) -> dict[str, Tensor]:
    """The outputs of a prompt and of a generation, and the gradients, under autocast with weights in float32."""
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            outputs = {"forward": whole(model.eval(), padded), "generate": generated(model, padded)}
        gradients = [gradient.flatten() for _, gradient in trained(model.train(), padded)]
    return outputs | {"gradients": torch.cat(gradients)}


@masked_or_not
@every_family
def test_autocast_gives_what_the_unpatched_model_gives(family: str, masked: bool) -> None:
    model = small(family)
    expected = under_autocast(model, masked)
    got = under_autocast(patch_of(model), masked)
    for name, want in expected.items():
        assert got[name].dtype == want.dtype, name
        assert (got[name] - want).norm() < 0.05 * want.norm(), name


@pytest.mark.parametrize("name", ["in_proj", "x_proj", "out_proj"])
def test_hooks_on_projections_change_what_they_change_unpatched(name):
    model, ids = small("Mamba"), prompt(False)["input_ids"]
    getattr(model.backbone.layers[0].mixer, name).register_forward_hook(lambda module, args, out: 0.5 * out)
    with torch.no_grad():
        expected = model(ids).logits
        stepped = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
        patch(model)
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None), stepped)


def test_a_pruned_model_is_trained():
    model, ids = small("Mamba"), prompt(False)["input_ids"]
    prune.l1_unstructured(model.backbone.layers[0].mixer.in_proj, "weight", 0.5)
    patch(model.train())
    for _ in range(2):
        model(ids, labels=ids, use_cache=False).loss.backward()
    assert model.backbone.layers[0].mixer.in_proj.weight_orig.grad.any()
