"""Trained-like weights, and the inputs that one layer's scan really receives."""

from typing import Any

import pytest
import torch

from helpers.official import REFERENCE, Official
from scanlab.errors import ProblemError
from scanlab.models.capture import capture_scan_inputs, trained_like_
from scanlab.models.images import prepare, sample_photograph
from scanlab.models.vision_mamba import VisionMamba, vim_tiny

SMALL = {"img_size": 16, "patch_size": 8, "stride": 8, "embed_dim": 16, "depth": 3, "num_classes": 5, "d_state": 4}
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def small(**options):
    return VisionMamba(**SMALL | {"scan": REFERENCE} | options)


def test_trained_like_weights_are_the_same_everywhere():
    model = trained_like_(small())
    other = trained_like_(small(dtype=torch.float64))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name].float(), rtol=1e-6, atol=1e-7)
    another = trained_like_(small(), seed=1)
    assert not any(torch.equal(value, another.state_dict()[name]) for name, value in model.state_dict().items())
    # numbers drawn once: the same on every machine and with every version of torch and numpy
    mixer: Any = model.layers[1].mixer
    torch.testing.assert_close(
        mixer.A_log[3], torch.tensor([0.1525226, 0.9947272, 1.2502377, 1.0226672]), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        mixer.dt_proj_b.bias[:3], torch.tensor([-6.331708, -5.542822, -3.069721]), rtol=0, atol=1e-5
    )


def test_trained_like_weights_look_trained():
    model = trained_like_(vim_tiny(scan=REFERENCE))
    for layer in (model.layers[0], model.layers[23]):
        mixer: Any = layer.mixer
        for A_log in (mixer.A_log, mixer.A_b_log):
            rates = A_log.exp()
            assert (rates - rates.round()).abs().mean() > 0.1
        for projection in (mixer.dt_proj, mixer.dt_proj_b):
            steps = torch.nn.functional.softplus(projection.bias)
            assert 1e-3 <= steps.min() < 2e-3
            assert 5e-2 < steps.max() <= 0.1
        assert 0.05 < layer.norm.weight.std() < 0.2
        assert layer.norm.weight.mean().item() == pytest.approx(1.0, abs=0.05)


def test_captured_inputs_are_those_of_the_official_model():
    official = Official("s_midcls")
    problem, inputs = capture_scan_inputs(official.model(), official.images(), 0)
    assert problem.key == "batch=2,dim=96,length=17,state=16,direction=bidirectional,layout=dim_last"
    for direction, each in enumerate(inputs):
        for name, tensor in each.tensors().items():
            expected = official[f"block0/scan{direction}/{name}"].float()
            if direction == 1 and name in ("u", "delta", "B", "C", "z"):
                expected = expected.flip(-1)  # the official second scan runs over reversed sequences
            expected = expected[:, 0] if name in ("B", "C") else expected
            torch.testing.assert_close(
                tensor, expected, rtol=0, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_capturing_gives_what_the_layer_gets_and_leaves_the_model_as_it_was():
    seen = []
    reference = REFERENCE

    def scan(*inputs, delta_softplus=True, direction="forward"):
        seen.append(inputs)
        return reference(*inputs, delta_softplus=delta_softplus, direction=direction)

    model = trained_like_(small(scan=scan)).eval()
    problem, inputs = capture_scan_inputs(model, IMAGES, 1)
    assert len(seen) == 1  # layer 0 ran on the model's own scan, layer 1 was captured, layer 2 not needed
    assert not problem.gradients
    assert not any(tensor.requires_grad for each in inputs for tensor in each.tensors().values())
    with torch.no_grad():
        model(IMAGES)
    assert len(seen) == 4
    for captured, real in zip(inputs, seen[2], strict=True):
        for name, tensor in captured.tensors().items():
            assert torch.equal(tensor, getattr(real, name)), name
            assert tensor.stride() == getattr(real, name).stride(), name


def test_one_direction_is_captured_as_one():
    problem, inputs = capture_scan_inputs(small(bimamba_type="none"), IMAGES, 2)
    assert problem.direction == "forward"
    assert len(inputs) == 1


def test_layers_that_do_not_exist_or_do_not_run_are_refused():
    for layer in (-1, 3):
        with pytest.raises(ProblemError, match="layers 0 to 2"):
            capture_scan_inputs(small(), IMAGES, layer)
    with pytest.raises(ProblemError, match="layer=2 is not used"):
        capture_scan_inputs(small(if_bidirectional=True), IMAGES, 2)


def test_a_large_photograph_poses_a_long_problem():
    model = trained_like_(vim_tiny(img_size=1248, scan=REFERENCE))
    problem, inputs = capture_scan_inputs(model, prepare(sample_photograph(), 1248)[None], 0)
    assert (problem.dim, problem.length, problem.layout) == (384, 6085, "dim_last")
    assert all(tensor.isfinite().all() for each in inputs for tensor in each.tensors().values())
