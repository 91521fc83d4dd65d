"""Export of a model to an ONNX graph of standard operators, with its recurrences as Scan; needs onnx."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from scanlab.errors import UnavailableError
from scanlab.models.vision_mamba import VisionMamba
from scanlab_kernels.selective_scan import scan_operator

INPUT, OUTPUT = "images", "logits"
NEEDED = ("onnx", "onnxscript", "onnxruntime")  # the writer, torch's translator, the checker


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
    traced.scan = scan_operator.scan
    program = torch.onnx.export(
        traced, (images,), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
    )
    assert program is not None  # it is None where a path was given
    program.save(str(path), external_data=False)
    onnx.checker.check_model(str(path))
