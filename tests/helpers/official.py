"""Recorded outputs of the official model, and the recipe of its weights and images."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from scanlab.models.vision_mamba import VisionMamba
from scanlab.runtime.dispatch import Dispatcher

GOLDEN = Path(__file__).parents[1] / "golden"
# The official float32 logits are about 5e-6 from those in float64: four times that is another model.
TOLERANCE = 2e-5


def _load_recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_recipe", GOLDEN / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFERENCE = Dispatcher("reference:threads=1")
RECIPE = _load_recipe()
EXTRA = np.load(GOLDEN / "golden_extra.npz")
INDEX = {entry["name"]: entry for entry in json.loads((GOLDEN / "vim_index.json").read_text())}


class Official:
    """One variant of the official model: its options, weights, images, and what it computed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.config = INDEX[name]["config"]
        self.batch = INDEX[name]["batch"]
        self.values = np.load(GOLDEN / f"vim_{name}.npz")
        self.shapes = json.loads(str(self.values["shapes_json"]))

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.values[key])

    def __contains__(self, key: str) -> bool:
        return key in self.values.files

    def model(self, **options: Any) -> VisionMamba:
        """Our model with the variant's options and weights, in evaluation mode, on the reference scan."""
        model = VisionMamba(**self.config, **{"scan": REFERENCE} | options).eval()
        weights = {name: RECIPE.param(name, shape) for name, shape in self.shapes.items()}
        tensors = {name: self[f"buffer/{name}"] if w is None else torch.from_numpy(w) for name, w in weights.items()}
        model.load_state_dict(tensors)
        return model

    def images(self) -> torch.Tensor:
        return torch.from_numpy(RECIPE.image(self.batch, self.config["img_size"]))


def manifest(name: str) -> dict:
    """Names, shapes and parameter count of a released model."""
    return json.loads((GOLDEN / f"manifest_{name}.json").read_text())
