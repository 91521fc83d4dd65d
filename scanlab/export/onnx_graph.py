"""Export of a model to an ONNX graph of standard operators, with its recurrences as Scan; needs onnx."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.contract.problem import Direction, ScanInputs, ScanOutput
from scanlab.errors import UnavailableError
from scanlab.models.vision_mamba import VisionMamba
from scanlab.runtime.ops import in_torch

INPUT, OUTPUT = "images", "logits"
NEEDED = ("onnx", "onnxscript", "onnxruntime")  # what writes it, what torch translates with, what it is checked with


def scan_operator(*inputs: ScanInputs, delta_softplus: bool = True, direction: Direction = "forward") -> ScanOutput:
    """Compute the scan of a Mamba block with the higher-order op that becomes ONNX's Scan, both directions in one.

    It takes the inputs of a Mamba block: D, z and delta_bias, B and C varying and without groups, no initial state.
    """
    # imported by the trace itself: what it brings along takes a second to load
    from torch._higher_order_ops.scan import scan

    turned = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]

    def over_time(name: str) -> Tensor:
        tensors = [getattr(each, name) for each in inputs]
        ahead = [tensor.flip(-1) if back else tensor for tensor, back in zip(tensors, turned, strict=True)]
        return torch.stack(ahead).permute(3, 0, 1, 2)  # (length, direction, batch, dim or state)

    def weights(name: str) -> Tensor:
        return torch.stack([getattr(each, name) for each in inputs])[:, None]  # (direction, 1, dim[, state])

    def step(h: Tensor, now: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        size, drive, B, C = now
        h = torch.exp(size[..., None] * A) * h + drive[..., None] * B[..., None, :]
        return h, (h @ C[..., None])[..., 0]

    A, u = weights("A"), over_time("u")
    biased = over_time("delta") + weights("delta_bias")
    size = F.softplus(biased) if delta_softplus else biased
    start = u.new_zeros(*u.shape[1:], A.shape[-1])
    last_state, read = scan(step, start, (size, size * u, over_time("B"), over_time("C")))
    y = (read + weights("D") * u).permute(1, 2, 3, 0)
    ungated = torch.stack([each.flip(-1) if back else each for each, back in zip(y.unbind(), turned, strict=True)])
    gates = torch.stack([F.silu(each.z) for each in inputs if each.z is not None])
    out = (ungated * gates).sum(0)
    return ScanOutput(out, last_state if len(inputs) == 2 else last_state[0])


@torch.no_grad()
def write_graph(model: VisionMamba, images: Tensor, path: Path) -> None:
    """Write `model` for inputs of the shape of `images` as the ONNX file `path`, weights included.

    The input of the graph is `images` and its output `logits`.

    Raises:
        UnavailableError: A package in NEEDED is missing.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UnavailableError(f"an ONNX graph needs {', '.join(missing)}: pip install 'scanlab[onnx]'")
    import onnx

    traced = copy.copy(model)
    traced.scan = scan_operator
    with in_torch():
        program = torch.onnx.export(
            traced, (images,), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
        )
    assert program is not None  # it is None where a path was given
    program.save(str(path), external_data=False)
    onnx.checker.check_model(str(path))
