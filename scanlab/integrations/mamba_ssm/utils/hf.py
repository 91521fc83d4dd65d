"""Models of the Hugging Face hub, or in a folder, as `mamba_ssm.utils.hf` reads them.

Source: state-spaces/mamba@e9594ce, mamba_ssm/utils/hf.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scanlab.models.checkpoints import read_weights


def load_config_hf(model_name: str) -> dict[str, Any]:
    """Return the configuration of a published model, or of one in a folder."""
    config: dict[str, Any] = json.loads(_file_of(model_name, "config.json").read_text())
    return config


def load_state_dict_hf(
    model_name: str, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Return the weights of a published model, or of one in a folder; in `dtype` where it is given.

    Raises:
        InputError: The file cannot be read, or holds something else than weights; see `read_weights`.
    """
    weights = read_weights(_file_of(model_name, "pytorch_model.bin"))
    return {name: tensor.to(device=device, dtype=dtype) for name, tensor in weights.items()}


def _file_of(model_name: str, name: str) -> Path:
    if Path(model_name).is_dir():
        return Path(model_name) / name
    from huggingface_hub import hf_hub_download  # slow to import, and only published models need it

    return Path(hf_hub_download(model_name, name))
