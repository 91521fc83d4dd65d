"""The short convolution against the official causal convolution, ahead and back."""

import json

import pytest
import torch
import torch.nn.functional as F

from scanlab.models.mixer import depthwise_convolution

from .official import EXTRA

INDEX = json.loads(str(EXTRA["index_json"]))
CASES = [case for case in INDEX["conv"] if f"{case['name']}/s" not in EXTRA.files]  # without initial states


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_convolution_matches_the_official_one_and_reversed_when_backward(case, backward):
    values = {
        key.rpartition("/")[2]: torch.from_numpy(EXTRA[key])
        for key in EXTRA.files
        if key.startswith(f"{case['name']}/")
    }
    dim, width = values["w"].shape
    convolution = torch.nn.Conv1d(dim, dim, width, groups=dim, bias="b" in values).to(values["w"].dtype)
    with torch.no_grad():
        convolution.weight.copy_(values["w"][:, None])
        if "b" in values:
            convolution.bias.copy_(values["b"])
    x = values["x"].mT.contiguous()
    y = (
        depthwise_convolution(x.flip(1), convolution, backward).flip(1)
        if backward
        else depthwise_convolution(x, convolution)
    )
    y = F.silu(y) if case["activation"] == "silu" else y
    torch.testing.assert_close(y.mT, values["out"].to(y.dtype), rtol=0, atol=1e-6)
