"""A language model of the drop-in as a workload of `scanlab tune --model`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scanlab.integrations.mamba_ssm.models.config_mamba import MambaConfig
from scanlab.integrations.mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel


def mamba_130m(batch: int = 1, size: int = 512) -> tuple[nn.Module, Tensor]:
    """Return a model of the shape of mamba-130m with random weights, and a prompt of `size` random tokens."""
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    try:
        config = MambaConfig(d_model=768, n_layer=24, vocab_size=50277)
        return MambaLMHeadModel(config).eval(), torch.randint(config.vocab_size, (batch, size))
    finally:
        torch.set_rng_state(generator_state)
