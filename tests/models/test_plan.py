"""A block keeps the ops that serve one kind of input, and never serves another kind with them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from scanlab import settings, vim_tiny
from scanlab.models.vision_mamba import VisionMamba
from scanlab.runtime import dispatch, usage


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[None]:
    """No profile, and nothing decided."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    dispatch.clear()
    yield
    dispatch.clear()


@pytest.fixture
def model() -> VisionMamba:
    torch.manual_seed(0)
    return VisionMamba(img_size=96, embed_dim=16, depth=2, num_classes=10).eval()


def test_a_second_call_gives_the_same_bits(model) -> None:
    images = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        first = model(images)
        assert torch.equal(model(images), first)
        assert torch.equal(model(images[:1]), model(images[:1]))
    with torch.no_grad():
        torch.testing.assert_close(model(images), first)
    torch.testing.assert_close(model(images).detach(), first)


def test_a_changed_weight_is_seen(model) -> None:
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        before = model(images)
        assert torch.equal(model(images), before)
        model.layers[0].mixer.out_proj.weight.mul_(2.0)
        changed = model(images)
        assert not torch.equal(changed, before)
        torch.testing.assert_close(changed, model.double()(images.double()).float(), rtol=1e-4, atol=1e-4)


def test_gradients_flow_after_inference(model) -> None:
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        model(images)
        model(images)
    model(images).sum().backward()
    assert model.layers[0].mixer.in_proj.weight.grad is not None


def test_usage_is_logged_although_a_plan_is_kept(model) -> None:
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        model(images)
        model(images)
        with usage.log_usage() as log:
            model(images)
    ((_, found),) = log.scans.items()
    assert found.calls == 2


def test_autocast_and_another_dtype_after_a_plan(model) -> None:
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        model(images)
        whole = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.allclose(model(images).float(), whole, atol=0.1)
        assert torch.allclose(model.bfloat16()(images.bfloat16()).float(), whole, atol=0.1)


def test_a_cleared_choice_is_made_again(model, monkeypatch) -> None:
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        model(images)
        model(images)
        monkeypatch.setenv("SCANLAB_BACKEND", "two_phase")
        dispatch.clear()
        model(images)
    (decision,) = dispatch.dispatcher().decided_scans.values()
    assert decision.backend == "two_phase"


def test_plans_are_bounded(model, monkeypatch) -> None:
    monkeypatch.setattr(settings, "MAX_KEPT_PLANS", 3)
    mixer = model.layers[0].mixer
    with torch.no_grad():
        for length in range(33, 83):
            mixer(torch.rand(1, length, 16), dispatch.scan)
        assert len(mixer.weights().plans) == 3


def test_the_released_model_takes_both_ways_alike() -> None:
    torch.manual_seed(0)
    model, images = vim_tiny(img_size=96).eval(), torch.rand(1, 3, 96, 96)
    planned = []
    with torch.no_grad():
        for _ in range(2):
            planned.append(model(images))
    assert torch.equal(*planned)
