"""Export of a model to an ONNX graph; needs onnx.

Its operators are standard ones, with the recurrences as Scan; or the recurrences are LinearAttention of ONNX Runtime.
"""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from scanlab.errors import UnavailableError
from scanlab.models.vision_mamba import VisionMamba
from scanlab_kernels.selective_scan import linear_attention, scan_operator

Operator = Literal["Scan", "LinearAttention"]
SCANS = {"Scan": scan_operator.scan, "LinearAttention": linear_attention.scan}
RUNTIME = (1, 32)  # the first ONNX Runtime with LinearAttention
INPUT, OUTPUT = "images", "logits"
NEEDED = ("onnx", "onnxscript", "onnxruntime")  # the writer, torch's translator, the checker


@torch.no_grad()
def write_graph(model: VisionMamba, images: Tensor, path: Path, operator: Operator = "Scan") -> None:
    """Write `model` for inputs of the shape of `images` as the ONNX file `path`, weights included.

    The input of the graph is `images` and its output `logits`.

    Args:
        model: The model, in evaluation mode.
        images: (batch, channels, height, width).
        path: The file.
        operator: Of the recurrences.

    Raises:
        UnavailableError: A package in NEEDED is missing, or ONNX Runtime lacks the operator.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UnavailableError(f"an ONNX graph needs {', '.join(missing)}: pip install 'scanlab[onnx]'")
    import onnx
    import onnxruntime

    found = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if operator == "LinearAttention" and found < RUNTIME:
        lacking = f"ONNX Runtime {onnxruntime.__version__} has no LinearAttention"
        raise UnavailableError(f"{lacking}: install 1.32 or newer, or export with Scan.")
    traced = copy.copy(model)
    traced.scan = SCANS[operator]
    program = torch.onnx.export(
        traced, (images,), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
    )
    assert program is not None  # it is None where a path was given
    program.save(str(path), external_data=False)
    onnx.checker.check_model(str(path))
