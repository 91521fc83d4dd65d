"""The scans that the official code computed in float64, with the inputs they were computed from."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import torch

from scanlab.contract.problem import ScanInputs, ScanProblem

GOLDEN = Path(__file__).parents[1] / "golden"
VALUES = np.load(GOLDEN / "golden_ops.npz")
CASES = {case["name"]: case for case in json.loads((GOLDEN / "golden_ops_index.json").read_text())["cases"]}

_spec = importlib.util.spec_from_file_location("golden_recipe", GOLDEN / "recipe.py")
RECIPE = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(RECIPE)


def drawn(name: str) -> dict[str, np.ndarray]:
    """The arrays of a case, `gout` among them, drawn anew by the recipe; without those the case lacks."""
    return {key: value for key, value in RECIPE.op_inputs(CASES[name]).items() if value is not None}


def inputs(name: str, dtype: torch.dtype) -> tuple[ScanInputs, torch.Tensor]:
    """The inputs of a case and the gradient that flows into its output."""
    tensors = {key: torch.from_numpy(value) for key, value in drawn(name).items()}
    tensors = {key: value.to(dtype.to_complex() if value.is_complex() else dtype) for key, value in tensors.items()}
    gradient = tensors.pop("gout")
    return ScanInputs(**tensors), gradient


def problem(name: str, dtype: torch.dtype) -> ScanProblem:
    """The problem that a case poses."""
    case = CASES[name]
    given, _ = inputs(name, dtype)
    return ScanProblem.of(given, delta_softplus=case["softplus"], direction="forward", gradients=case["grads"])
