"""Vision Mamba against vectors of the official model: names and shapes, logits, blocks and gradients."""

import pytest
import torch

from helpers.official import INDEX, RECIPE, TOLERANCE, Official, manifest
from scanlab.contract import registry
from scanlab.models.vision_mamba import RELEASED


@pytest.mark.parametrize("name", ["tiny", "small", "base", "tiny_stride8", "small_stride8"])
def test_released_models_have_the_official_names_shapes_and_order(name):
    expected = manifest(name)
    with torch.device("meta"):
        model = RELEASED[f"vim_{name}"]()
    shapes = [(key, list(value.shape)) for key, value in model.state_dict().items()]
    assert shapes == list(expected["state_dict"].items())
    assert sum(parameter.numel() for parameter in model.parameters()) == expected["params"]


@pytest.mark.parametrize("name", INDEX)
def test_logits_features_and_blocks_match_the_official_model(name):
    golden = Official(name)
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
    images = golden.images()[:1] if name == "t_full" else golden.images()  # one full-size image is slow enough
    with torch.no_grad():
        features = model(images, return_features=True)
        logits = model.head(features)
    for actual, expected in ((logits, golden["logits_f64"]), (features, golden["features_f64"])):
        torch.testing.assert_close(actual.double(), expected[: len(images)], rtol=0, atol=TOLERANCE)
    compared = 0
    for name, value in taps.items():
        if name in golden:
            expected = golden[name].double()
            actual = value if expected.shape == value.shape else value[:1, ::4]
            largest = expected.abs().max().item()
            torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE * max(1.0, largest), msg=name)
            compared += 1
    assert compared >= 2


@pytest.mark.parametrize("backend", [each.name for each in registry.load_all("selective_scan")[0]])
def test_logits_match_the_official_model_on_every_backend(backend):
    official = Official("t_depth2_midcls")
    unavailable = registry.get(backend).unavailable()
    if unavailable:
        pytest.skip(unavailable)
    model = official.model(scan=backend)
    with torch.no_grad():
        logits = model(official.images())
    torch.testing.assert_close(logits.double(), official["logits_f64"], rtol=0, atol=TOLERANCE)


def gradient_names(golden):
    return [name.removeprefix("grad/") for name in golden.values.files if name.startswith("grad/")]


@pytest.mark.parametrize("name", ["s_midcls", "s_bimamba_none"])
def test_gradients_match_the_official_model(name):
    golden = Official(name)
    model = golden.model()
    logits = model(golden.images())
    seed = torch.from_numpy(RECIPE.unit(f"gradseed/{name}", logits.shape))
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
