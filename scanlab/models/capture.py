"""Realistic scan inputs: trained-like weights, a photograph, and the inputs that the scan of one layer receives."""

from __future__ import annotations

import math
import zlib
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scanlab.contract.problem import Direction, ScanInputs, ScanProblem
from scanlab.errors import ProblemError
from scanlab.models.vision_mamba import VisionMamba

EMBEDDINGS = ("pos_embed", "cls_token", "cls_token_head", "cls_token_tail")


class CapturedScan(NamedTuple):
    """The problem of one layer's scan and its inputs, one ScanInputs for each direction."""

    problem: ScanProblem
    inputs: tuple[ScanInputs, ...]


@torch.no_grad()
def trained_like_(model: VisionMamba, seed: int = 0) -> VisionMamba:
    """Fill the model in place with weights that look trained, the same on every machine, and return it.

    They differ from fresh weights where training moves them and where a wrong scan could stay unnoticed: the rates
    in A are not integers and differ by channel, D and the norms are near 1 and not 1, the step sizes of both
    directions span two decades (a fresh reverse direction has equal ones), no bias is 0. The numbers
    depend on seed, names and shapes alone, through numpy's raw PCG64 stream, which numpy keeps stable.
    """
    for name, parameter in model.named_parameters():
        generator = np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))
        raw = np.asarray(generator.random_raw(parameter.numel()), dtype=np.uint64).reshape(tuple(parameter.shape))
        uniform = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
        parameter.copy_(torch.from_numpy(_trained_like(name, uniform)))
    return model


def _trained_like(name: str, uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values for the parameter `name`, computed from numbers uniform in [0, 1) of its shape."""
    unit = math.sqrt(3.0) * (2.0 * uniform - 1.0)  # mean 0, variance 1
    module, _, leaf = name.rpartition(".")
    module = module.rpartition(".")[2]
    if leaf in ("A_log", "A_b_log"):
        return np.log(np.arange(1, uniform.shape[1] + 1)) + 0.25 * unit
    if leaf in ("D", "D_b"):
        return 1.0 + 0.2 * unit
    if module in ("dt_proj", "dt_proj_b") and leaf == "bias":
        step = 10.0 ** (-3.0 + 2.0 * uniform)
        return step + np.log(-np.expm1(-step))  # the inverse of softplus
    if module in ("norm", "norm_f") and leaf == "weight":
        return 1.0 + 0.1 * unit
    if leaf == "gamma":
        return 0.5 + 0.1 * unit
    if leaf in EMBEDDINGS:
        return 0.2 * unit
    if leaf == "bias":
        return 0.1 * unit
    return unit / math.sqrt(math.prod(uniform.shape[1:]))


class _CapturedError(Exception):
    """Stops a forward pass after the captured layer; carries the captured inputs."""

    def __init__(self, captured: CapturedScan) -> None:
        super().__init__("captured")
        self.captured = captured


@torch.no_grad()
def capture_scan_inputs(model: VisionMamba, images: Tensor, layer: int) -> CapturedScan:
    """Return the inputs that the scan of one layer receives for `images`.

    The layers before it run on the model's own scan, those after it do not run. The tensors are detached and have the
    strides that the model gives them.

    Args:
        model: The model.
        images: (batch, channels, height, width).
        layer: Index of the layer, from 0.

    Raises:
        ProblemError: There is no such layer.
    """
    if not 0 <= layer < len(model.layers):
        raise ProblemError(f"layer={layer}: this model has layers 0 to {len(model.layers) - 1}.")

    def recorder(*inputs: ScanInputs, delta_softplus: bool = True, direction: Direction = "forward") -> NoReturn:
        detached = tuple(
            each.with_tensors(**{name: tensor.detach() for name, tensor in each.tensors().items()}) for each in inputs
        )
        problem = ScanProblem.of(*detached, delta_softplus=delta_softplus, direction=direction)
        raise _CapturedError(CapturedScan(problem, detached))

    def record(mixer: nn.Module, arguments: tuple[Tensor, object]) -> tuple[Tensor, object]:
        return arguments[0], recorder

    mixer = model.get_submodule(f"layers.{layer}.mixer")
    hook = mixer.register_forward_pre_hook(record)
    try:
        model(images)
    except _CapturedError as end:
        return end.captured
    finally:
        hook.remove()
    raise ProblemError(
        f"layer={layer} is not used: if_bidirectional takes layers in pairs and leaves an odd last one out."
    )
