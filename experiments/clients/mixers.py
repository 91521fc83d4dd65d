"""Builders of models of `catalogue` for language, series and graphs that have a mixer or a mamba_ssm of their own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from checkouts import Built, from_file, image, package, stand_in
from torch import Tensor, nn


def tokens(vocabulary: int, *shape: int) -> Tensor:
    """Return random tokens, the same for each call."""
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(1))


def _zyphra(**options: Any) -> Built:
    from mamba_config import MambaConfig
    from mamba_model import MambaModel

    sizes = {"num_layers": 4, "hidden_size": 256, "state_size": 16, "conv_dimension": 4, "vocab_size": 1000}
    config = MambaConfig(**sizes, gated_linear_unit=True, add_bias_linear=False, use_fast_path=True, **options)
    return MambaModel(config, max_sequence_length=128), (tokens(1000, 1, 128),)


def black_mamba() -> Built:
    """Return BlackMamba, two mixers and two mixtures of eight experts."""
    return _zyphra(num_moe_experts=8, mamba_moe_layers=["r", "8", "r", "8"])


def zamba2() -> Built:
    """Return the mixer of Zamba2, which is Mamba-2's with a copy of its kernels."""
    from mamba2_layer import Mamba2Layer
    from mamba_config import MambaConfig

    sizes = {"num_layers": 2, "hidden_size": 256, "state_size": 16, "conv_dimension": 4, "num_attention_heads": 4}
    return Mamba2Layer(MambaConfig(**sizes)), (image(1, 128, 256),)


def coupled_mamba() -> Built:
    """Return the mixer of Coupled Mamba."""
    mixer = from_file("coupled_mamba", "model.py")
    return mixer.Mamba(128, d_state=16), (image(1, 64, 128),)


def har_mamba() -> Built:
    """Return HARMamba, four blocks, for nine sensors."""
    import models_mamba

    model = models_mamba.HARMamba(depth=4, if_bimamba=False, bimamba_type="v2", if_devide_out=True)
    return model, (image(2, 512, 9),)


def time_series_library() -> Built:
    """Return the forecaster of the Time Series Library that is called Mamba."""
    package("layers", "layers")
    from models.Mamba import Model

    sizes = {"pred_len": 96, "d_model": 128, "expand": 2, "enc_in": 7, "c_out": 7, "d_ff": 16, "d_conv": 4}
    options = {"embed": "timeF", "freq": "h", "dropout": 0.0}
    model = Model(SimpleNamespace(**sizes, **options, task_name="long_term_forecast"))
    model.register_forward_pre_hook(lambda module, inputs: (*inputs, None, None))
    return model, (image(1, 96, 7), image(1, 96, 4))


def aim() -> Built:
    """Return the Mamba-2 of AiM-B, four layers, for the tokens of an image."""
    for name in ("models", "models.stage2"):
        package(name, name.replace(".", "/"))
    stand_in(
        "transformers.generation", GreedySearchDecoderOnlyOutput=None, SampleDecoderOnlyOutput=None, TextStreamer=None
    )
    from models.stage2.config_mamba import MambaConfig
    from models.stage2.mixer_seq_simple import MambaLMHeadModel

    config = MambaConfig(d_model=256, n_layer=4, vocab_size=1024, adaln_group=True, num_groups=2)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = MambaLMHeadModel(config)

        def forward(self, codes: Tensor, classes: Tensor) -> Any:
            return self.model(codes, cond=classes).logits

    return Logits(), (tokens(1024, 1, 128), tokens(1000, 1, 1))


def nakul() -> Built:
    """Return MambaEEGNet for 22 channels."""
    network = from_file("mamba_eeg_net", "models/mamba.py")
    return network.MambaEEGNet(), (image(1, 22, 500),)


def i2dtl() -> Built:
    """Return the mixer of I2DTL on 64 tokens, whose copy of mamba_ssm is called selective_modeling."""
    stand_in("selective_modeling.models.mixer_seq_simple", MambaLMHeadModel=None)
    package("selective_modeling", "selective_modeling")
    from selective_modeling.modules.graph_selective_modeling import Mamba

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = Mamba(64, use_fast_path=False)

        def forward(self, x: Tensor, adjacency: Tensor) -> Any:
            return self.mixer(x, adjacency)

    return Mixer(), (image(1, 64, 64), image(1, 64, 64).softmax(-1))
