"""What stands around the mixers in `mamba_ssm.utils`: the cache of a generation, and weights from the Hugging Face hub.

Source: state-spaces/mamba@e9594ce, mamba_ssm/utils/generation.py, hf.py; ops/triton/selective_state_update.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from scanlab import mixer
from scanlab.errors import UnavailableError


@dataclass
class InferenceParams:
    """How far a generation has come, and the states of each layer."""

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    batch_size_offset: int = 0
    key_value_memory_dict: dict[Any, Any] = field(default_factory=dict)
    lengths_per_sample: Tensor | None = None

    def reset(self, max_seqlen: int, max_batch_size: int) -> None:
        """Begin anew; the states of the layers stay where they are."""
        self.max_seqlen = max_seqlen
        self.max_batch_size = max_batch_size
        self.seqlen_offset = 0
        if self.lengths_per_sample is not None:
            self.lengths_per_sample.zero_()


class GenerationMixin:
    """A base that models inherit from; decoding itself is not provided."""

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        """The states of all layers; the model that inherits has them."""
        raise NotImplementedError

    def generate(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises UnavailableError."""
        raise UnavailableError(
            "generate is not provided by scanlab, which stands in for mamba_ssm: step through the model with"
            " InferenceParams, or load it with transformers (MambaForCausalLM)."
        )


def load_config_hf(model_name: str) -> dict[str, Any]:
    """The configuration of a published model, or of one in a folder."""
    config: dict[str, Any] = json.loads(_file_of(model_name, "config.json").read_text())
    return config


def load_state_dict_hf(
    model_name: str, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The weights of a published model, or of one in a folder; floating ones in `dtype` where it is given."""
    weights = torch.load(_file_of(model_name, "pytorch_model.bin"), map_location="cpu", weights_only=True)
    return {
        name: tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
        for name, tensor in weights.items()
    }


def _file_of(model_name: str, name: str) -> Path:
    if Path(model_name).is_dir():
        return Path(model_name) / name
    from huggingface_hub import hf_hub_download  # slow to import, and only published models need it

    return Path(hf_hub_download(model_name, name))


def selective_state_update_ref(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """`selective_state_update` in plain PyTorch; without state_batch_indices, as upstream."""
    with mixer.in_torch():
        return mixer.selective_state_update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
