"""Convolutions of feature maps: the results of torch's own, whatever happens to weight and layer."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scanlab.models.convolution import Convolution

OPTIONS: list[dict[str, Any]] = [
    {"channels": 8, "features": 12, "size": 3, "stride": 2, "padding": 1},
    {"channels": 8, "features": 8, "size": 3, "padding": 1, "groups": 8, "bias": False},
    {"channels": 3, "features": 8, "size": 4, "stride": 4},
    {"channels": 4, "features": 768, "size": 3, "stride": 2, "padding": 1},  # few positions beside the features
]


def maps(channels: int, height: int = 12) -> Tensor:
    return torch.randn(2, height, 16, channels).permute(0, 3, 1, 2)


def of_torch(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return nn.functional.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


@pytest.mark.parametrize("options", OPTIONS)
@torch.no_grad()
def test_results_are_those_of_torch_for_maps_of_every_size(options):
    layer = Convolution(**options)
    for x in (maps(options["channels"]), maps(options["channels"], 24), maps(options["channels"]).contiguous()):
        torch.testing.assert_close(layer(x), of_torch(layer, x))
        torch.testing.assert_close(layer.double()(x.double()), of_torch(layer, x.double()))
        layer.float()


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]])
@torch.no_grad()
def test_a_weight_that_changes_is_read_anew(options):
    layer, x = Convolution(**options), maps(options["channels"])
    layer(x)
    layer.weight.mul_(2.0)
    torch.testing.assert_close(layer(x), of_torch(layer, x))
    layer.load_state_dict({name: each + 1 for name, each in layer.state_dict().items()})
    torch.testing.assert_close(layer(x), of_torch(layer, x))
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))
    torch.testing.assert_close(layer(x), of_torch(layer, x))


def test_copies_pickles_hooks_and_gradients():
    layer, x = Convolution(**OPTIONS[0]), maps(8)
    with torch.no_grad():
        expected = layer(x)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            torch.testing.assert_close(other(x), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
    assert list(layer.state_dict()) == ["weight", "bias"]
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    nn.utils.parametrizations.weight_norm(layer)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), of_torch(layer, x))
