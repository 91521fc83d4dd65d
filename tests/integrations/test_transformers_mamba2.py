"""Patched Mamba-2 models of transformers against themselves unpatched: every family and each option of its mixer."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scanlab
from helpers.observe_transformers import logits_of, observed, whole
from helpers.transformers_families import FAMILIES, prompt, small
from scanlab.contract.cpu import torch_threads
from scanlab.integrations.transformers import patch, unpatch

transformers = pytest.importorskip("transformers", minversion="5.16")

MAMBA2 = ("Mamba2", "Bamba", "FalconH1", "GraniteMoeHybrid", "NemotronH", "Zamba2")
VARIANTS: dict[str, dict[str, Any]] = {
    "Mamba2 with limited steps": {},
    "Mamba2 with other biases": {},
    "Mamba2 with a wider convolution": {},
    "FalconH1 without norm": {"mamba_rms_norm": False},
    "FalconH1 with gate after norm": {"mamba_rms_norm": True, "mamba_norm_before_gate": True},
    "FalconH1 with gate before norm": {
        **{"mamba_rms_norm": True, "mamba_norm_before_gate": False, "mamba_n_groups": 2},
        **{"ssm_in_multiplier": 0.7, "ssm_multipliers": [0.5, 1.5, 0.8, 1.2, 0.9], "projectors_bias": True},
    },
}


@pytest.fixture(autouse=True)
def unpatched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test begins and ends with transformers as it came, and takes one thread: its tensors are small."""
    for name, options in VARIANTS.items():
        if options:
            monkeypatch.setitem(FAMILIES, name, FAMILIES[name.split()[0]] | options)
    unpatch()
    with torch_threads(1):
        yield
    unpatch()


def patched(model: Any) -> Any:
    patch(model)
    return model


def error(got: Tensor, want: Tensor) -> float:
    """The norm of the error as a share of the norm of what is wanted."""
    got, want = got.detach().float(), want.detach().float()
    return float((got - want).norm() / want.norm().clamp_min(1e-30))


@pytest.mark.parametrize("family", [*MAMBA2, *VARIANTS])
def test_prompts_generation_and_gradients_are_those_of_the_unpatched_model(family: str) -> None:
    expected = dict(observed(small(family), autocast=False))
    got = dict(observed(patched(small(family)), autocast=False))
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        assert got[name].dtype == want.dtype, name
        assert error(got[name], want) < (2e-5 if "gradient" in name else 2e-6), name


@pytest.mark.parametrize("family", MAMBA2)
def test_autocast_is_as_near_to_float32_as_unpatched(family: str) -> None:
    exact = dict(observed(small(family), autocast=False))
    expected = dict(observed(small(family), autocast=True))
    for name, got in observed(patched(small(family)), autocast=True):
        assert got.dtype == expected[name].dtype, name
        assert error(got, exact[name]) < max(1.3 * error(expected[name], exact[name]), 0.02), name


@pytest.mark.parametrize("family", MAMBA2)
def test_bfloat16_is_as_near_to_float32_as_unpatched(family: str) -> None:
    with torch.no_grad():
        exact = whole(small(family), padded=True)
        want = whole(small(family).bfloat16(), padded=True)
        got = whole(patched(small(family).bfloat16()), padded=True)
    assert got.dtype == want.dtype
    assert error(got, exact) < max(1.3 * error(want, exact), 0.02)


def test_the_op_ssd_serves() -> None:
    with torch.no_grad(), patch():
        whole(small("Mamba2"), padded=False)
    assert "length=13,heads=4,head_dim=16,state=8,groups=2" in scanlab.explain()


def test_gradients_flow_through_the_cache() -> None:
    model = patched(small("Mamba2"))
    ids = prompt(padded=False)["input_ids"]
    entire = model(ids, use_cache=False).logits[:, -1]
    wanted = torch.autograd.grad(entire.sum(), list(model.parameters()))
    cache = model(ids[:, :-1], use_cache=True).cache_params
    last = model(ids[:, -1:], cache_params=cache, use_cache=True).logits[:, -1]
    assert error(last, entire) < 2e-6
    for one, other in zip(torch.autograd.grad(last.sum(), list(model.parameters())), wanted, strict=True):
        assert error(one, other) < 2e-5


@pytest.mark.parametrize("name", ["in_proj", "norm", "out_proj"])
@torch.no_grad()
def test_hooks_change_what_they_change_unpatched(name: str) -> None:
    model, ids = small("Mamba2"), prompt(padded=False)["input_ids"]
    before = model(ids).logits
    getattr(model.backbone.layers[0].mixer, name).register_forward_hook(lambda module, args, out: 0.5 * out)
    expected = model(ids).logits
    assert error(before, expected) > 1e-3
    assert error(patched(model)(ids).logits, expected) < 2e-6


@torch.no_grad()
def test_a_norm_of_another_class_is_called() -> None:
    class Louder(nn.Module):
        def forward(self, y: Tensor, gate: Tensor) -> Tensor:
            return 2 * y + gate

    model, ids = small("Bamba"), prompt(padded=True)
    model.model.layers[0].mamba.norm = Louder()
    expected = logits_of(model(**ids))
    assert error(logits_of(patched(model)(**ids)), expected) < 2e-6


@torch.no_grad()
def test_packed_sequences_are_kept_apart() -> None:
    mixer = patched(small("Mamba2")).backbone.layers[0].mixer
    hidden = torch.randn(1, 12, 32)
    packed = mixer(hidden, seq_idx=torch.tensor([[0] * 7 + [1] * 5]))
    apart = torch.cat([mixer(hidden[:, :7]), mixer(hidden[:, 7:])], dim=1)
    assert error(packed, apart) < 2e-6


@torch.no_grad()
def test_a_pickle_of_a_patched_model_is_patched() -> None:
    model, ids = patched(small("GraniteMoeHybrid")), prompt(padded=True)
    copied = pickle.loads(pickle.dumps(model))
    assert copied.model.layers[0].mamba.forward.__module__ == patch.__module__
    assert error(logits_of(copied(**ids)), logits_of(model(**ids))) < 1e-6
