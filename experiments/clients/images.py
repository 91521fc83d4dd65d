"""Builders of models of `catalogue` that restore, segment or classify images by orders of scanning of their own."""

from __future__ import annotations

from checkouts import Built, from_file, image, stand_in
from torch import nn


def pan_mamba() -> Built:
    """Return the mixer of Pan-Mamba, which is bidirectional, on the tokens of a feature map."""
    mixer = from_file("pan_mamba", "Mamba-block/mamba_simple.py")
    return mixer.Mamba(32, bimamba_type="v2"), (image(1, 256, 32),)


def mamba_mil(kind: str) -> Built:
    """Return MambaMIL on the 300 patches of a slide."""
    from models.MambaMIL import MambaMIL

    model = MambaMIL(in_dim=1024, n_classes=2, dropout=False, act="relu", type=kind)
    model.register_forward_hook(lambda module, inputs, out: out[0])  # the logits
    return model, (image(1, 300, 1024),)


def sigma() -> Built:
    """Return Sigma's fusion of two feature maps by cross attention of their scans."""
    network = from_file("sigma_vmamba", "models/encoders/vmamba.py")
    return network.CrossMambaFusionBlock(hidden_dim=96, d_state=4), image(2, 1, 16, 16, 96)


def mair() -> Built:
    """Return MaIR with two groups of two blocks."""
    from mair_arch import MaIR

    model = MaIR(img_size=32, embed_dim=60, depths=(2, 2), scan_len=4, upscale=2)
    return model, (image(1, 3, 32, 32).sigmoid(),)


def mamba_ad() -> Built:
    """Return the mixer of MambaAD, which scans a feature map in eight directions."""

    class Registry:
        def register_module(self, function: object) -> object:
            return function

    stand_in("model", get_model=None, MODEL=Registry())
    stand_in("hilbert", decode=None, encode=None)
    stand_in("pyzorder", ZOrderIndexer=None)
    network = from_file("mamba_ad", "model/mambaad.py")
    return network.SS2D(d_model=128, size=16, scan_type="sweep"), (image(1, 16, 16, 128),)


def simba() -> Built:
    """Return SiMBA-S without its path for training by mixed tokens."""
    from simba import SiMBA

    sizes = {"stem_hidden_dim": 32, "embed_dims": [64, 128, 320, 448], "mlp_ratios": [8, 8, 4, 4]}
    return SiMBA(img_size=64, depths=[1, 1, 1, 1], sr_ratios=[4, 2, 1, 1], **sizes), (image(1, 3, 64, 64),)


def ultralight() -> Built:
    """Return UltraLight VM-UNet without its last sigmoid, which random weights saturate."""
    from models.UltraLight_VM_UNet import UltraLight_VM_UNet

    model = UltraLight_VM_UNet()
    model.final = nn.Conv2d(8, 1, kernel_size=1)
    return model, (image(1, 3, 64, 64),)
