"""Vision Mamba against the official model: names, logits, blocks, gradients, initialisation and every option."""

import json
from pathlib import Path

import pytest
import torch

from scanlab.models.vision_mamba import RELEASED

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 2e-5


@pytest.mark.parametrize("name", ["tiny", "small", "base", "tiny_stride8", "small_stride8"])
def test_released_models_have_the_official_names_shapes_and_order(name):
    manifest = json.loads((GOLDEN / f"manifest_{name}.json").read_text())
    with torch.device("meta"):
        model = RELEASED[f"vim_{name}"]()
    shapes = [(key, list(value.shape)) for key, value in model.state_dict().items()]
    assert shapes == list(manifest["state_dict"].items())
    assert sum(parameter.numel() for parameter in model.parameters()) == manifest["params"]


def test_logits_features_and_blocks_match_the_official_model(golden):
    model = golden.model()
    assert [(name, list(value.shape)) for name, value in model.state_dict().items()] == list(golden.shapes.items())
    taps = {}

    def tap(index):
        def mixer(module, args, output):
            taps[f"block{index}/mixer_in"], taps[f"block{index}/mixer_out"] = args[0], output

        def block(module, args, output):
            taps[f"block{index}/out_hidden"], taps[f"block{index}/out_residual"] = output

        model.layers[index].mixer.register_forward_hook(mixer)
        model.layers[index].register_forward_hook(block)

    for index in range(len(model.layers)):
        tap(index)
    with torch.no_grad():
        features = model(golden.images(), return_features=True)
        logits = model.head(features)
    torch.testing.assert_close(logits.double(), golden["logits_f64"], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(features.double(), golden["features_f64"], rtol=0, atol=TOLERANCE)
    compared = 0
    for name, value in taps.items():
        if name in golden:
            expected = golden[name].double()
            actual = value if len(expected) == len(value) and expected.shape == value.shape else value[:1, ::4]
            largest = expected.abs().max().item()
            torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE * max(1.0, largest), msg=name)
            compared += 1
    assert compared >= 2


def gradient_names(golden):
    return [name.removeprefix("grad/") for name in golden.values.files if name.startswith("grad/")]


@pytest.mark.parametrize("name", ["s_midcls", "s_bimamba_none"])
def test_gradients_match_the_official_model(name, make_golden):
    golden = make_golden(name)
    model = golden.model()
    logits = model(golden.images())
    seed = torch.from_numpy(golden.recipe.unit(f"gradseed/{name}", logits.shape))
    torch.sum(logits * seed).backward()
    parameters = dict(model.named_parameters())
    names = gradient_names(golden)
    assert len(names) > 20
    for parameter in names:
        expected = golden[f"grad/{parameter}"].double()
        torch.testing.assert_close(
            parameters[parameter].grad.double(),
            expected,
            rtol=0,
            atol=TOLERANCE * expected.abs().max().item(),
            msg=lambda text, parameter=parameter: f"{parameter}: {text}",
        )
