"""The cases of golden_extra.npz: values that the official code computed, by op."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

STORED = np.load(Path(__file__).parents[1] / "golden" / "golden_extra.npz")


class GoldenCase(NamedTuple):
    """A case: its name, its options, and its tensors by name (absent ones are None)."""

    name: str
    options: dict[str, Any]

    def tensor(self, name: str) -> Tensor | None:
        key = f"{self.name}/{name}"
        return torch.from_numpy(STORED[key]) if key in STORED.files else None


def golden_cases(op: str) -> list[GoldenCase]:
    """The cases of one op: conv, conv_update, state_update."""
    entries = json.loads(str(STORED["index_json"]))[op]
    return [GoldenCase(entry.pop("name"), entry) for entry in entries]
