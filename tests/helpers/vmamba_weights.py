"""Weights of a VMamba that depend on the names and shapes of its state_dict alone, and images for it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from helpers.official import RECIPE


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return one entry of a state_dict."""
    values = RECIPE.unit(name, shape)
    leaf = name.rpartition(".")[2]
    if leaf == "A_logs":
        values = torch.arange(1.0, shape[-1] + 1).log().numpy() + 0.25 * values
    elif leaf == "dt_projs_bias":
        step = torch.from_numpy(math.log(1e-3) + RECIPE.u01(name, shape) * math.log(1e2)).exp()
        values = (step + torch.log(-torch.expm1(-step))).numpy()
    elif leaf == "bias":
        values = 0.1 * values
    elif len(shape) == 1:  # Ds and the weights of norms
        values = 1 + 0.2 * values
    else:
        fan_in = shape[-1] if leaf in ("x_proj_weight", "dt_projs_weight") else math.prod(shape[1:])
        values = values * fan_in**-0.5
    return torch.from_numpy(values).float()


def weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights for all entries of a state_dict."""
    return {name: weight(name, tuple(each.shape)) for name, each in state_dict.items()}


def images() -> Tensor:
    """Return two images of 36 x 52 pixels, whose maps have odd sizes."""
    return torch.from_numpy(RECIPE.unit("images/vmamba", (2, 3, 36, 52))).float()
