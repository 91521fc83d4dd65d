"""Builders of the models of `catalogue` that are not made for images: speech, series, noise, points, shops."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from checkouts import Built, image, package, stand_in
from torch import Tensor, nn


def se_mamba() -> Built:
    """Return SEMamba with two blocks, for 32 frames of 201 frequencies."""
    from models.generator import SEMamba

    sizes = {"hid_feature": 64, "num_tfmamba": 2, "d_state": 16, "d_conv": 4, "expand": 4, "norm_epsilon": 1e-5}
    model = SEMamba(
        {"model_cfg": {**sizes, "beta": 2.0, "input_channel": 2, "output_channel": 1}, "stft_cfg": {"n_fft": 400}}
    )
    return model, (image(1, 201, 32).abs(), image(1, 201, 32))


def s_mamba() -> Built:
    """Return S-Mamba for 321 series."""
    stand_in("reformer_pytorch", LSHSelfAttention=None)
    from model.S_Mamba import Model

    sizes = {"seq_len": 96, "pred_len": 96, "d_model": 512, "d_ff": 512, "d_state": 16, "e_layers": 3}
    options = {"output_attention": False, "use_norm": True, "embed": "timeF", "freq": "h", "dropout": 0.0}
    model = Model(SimpleNamespace(**sizes, **options, class_strategy="projection", activation="gelu"))
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0], None, None, None))
    return model, (image(1, 96, 321),)


def dis() -> Built:
    """Return DiS-S/2 with six blocks, for latent images of 32 pixels."""
    from models_dis import DisModel

    model = DisModel(img_size=32, patch_size=2, embed_dim=384, channels=4, depth=6, num_classes=10)
    return model, (image(1, 4, 32, 32), torch.tensor([0.3]), torch.tensor([3]))


def hydra() -> Built:
    """Return the layer of Hydra, which calls the scan of Mamba-2."""
    package("hydra", "hydra")
    package("hydra.modules", "hydra/modules")
    from hydra.modules.hydra import Hydra

    return Hydra(d_model=256), (image(2, 256, 256),)


def mamba4rec() -> Built:
    """Return Mamba4Rec for the items of MovieLens-1M."""

    class SequentialRecommender(nn.Module):
        n_items = 3417

        def __init__(self, config: Any, dataset: Any) -> None:
            super().__init__()

        def gather_indexes(self, output: Tensor, index: Tensor) -> Tensor:
            return output[torch.arange(len(output)), index]

    for name in ("recbole", "recbole.model"):
        stand_in(name)
    stand_in("recbole.model.abstract_recommender", SequentialRecommender=SequentialRecommender)
    stand_in("recbole.model.loss", BPRLoss=None)
    from mamba4rec import Mamba4Rec

    sizes = {"hidden_size": 64, "num_layers": 2, "d_state": 32, "d_conv": 4, "expand": 2}
    items = torch.randint(1, 3417, (4, 200), generator=torch.Generator().manual_seed(1))
    return Mamba4Rec(sizes | {"dropout_prob": 0.2, "loss_type": "CE"}, None), (items, torch.tensor([200, 90, 3, 51]))


class NearestPoints(nn.Module):
    """Indices of the k nearest points, as the package KNN_CUDA gives them."""

    def __init__(self, k: int, transpose_mode: bool) -> None:
        super().__init__()
        self.k = k

    def forward(self, points: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return distances and indices (batch, queries, k)."""
        distances, indices = torch.cdist(queries, points).topk(self.k, largest=False)
        return distances, indices


def mamba3d() -> Built:
    """Return the encoder of Mamba3D, four blocks, on the tokens of 128 groups of points."""
    stand_in("extensions")
    stand_in("extensions.chamfer_dist", ChamferDistanceL1=None, ChamferDistanceL2=None)
    stand_in("knn_cuda", KNN=NearestPoints)
    stand_in("utils")
    stand_in("utils.misc")
    stand_in("utils.logger")
    stand_in("utils.checkpoint", get_missing_parameters_message=None, get_unexpected_parameters_message=None)
    package("models", "models")
    registry = SimpleNamespace(register_module=lambda: lambda registered: registered)
    stand_in("models.build_fn", MODELS=registry)
    from models.Mamba3D import Mamba3DEncoder

    class OfTokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = Mamba3DEncoder(k_group_size=4, embed_dim=384, depth=4, bimamba_type="v4")

        def forward(self, center: Tensor, tokens: Tensor, positions: Tensor) -> Any:
            return self.encoder(center, tokens, positions)

    centers, (tokens, positions) = image(1, 128, 3), image(2, 1, 129, 384)
    return OfTokens(), (centers, tokens, positions)


def time_machine() -> Built:
    """Return TimeMachine for seven series."""
    package("models", "models")
    from models.TimeMachine import Model

    sizes = {"enc_in": 7, "seq_len": 96, "pred_len": 96, "n1": 128, "n2": 32, "d_state": 64, "dconv": 2, "e_fact": 1}
    model = Model(SimpleNamespace(**sizes, revin=0, ch_ind=1, residual=1, dropout=0.0))
    return model, (image(1, 96, 7),)


def caduceus() -> Built:
    """Return Caduceus (bidirectional, the weights of both directions tied), four layers, for 256 nucleotides."""
    from caduceus.configuration_caduceus import CaduceusConfig
    from caduceus.modeling_caduceus import Caduceus

    config = CaduceusConfig(d_model=256, n_layer=4, vocab_size=12, fused_add_norm=True, rms_norm=True)
    return Caduceus(config), (torch.randint(7, 11, (1, 256), generator=torch.Generator().manual_seed(1)),)
