"""Builders of models of `catalogue` for images, volumes, videos and poses, most with a mamba_ssm of their own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from checkouts import Built, from_file, image, package
from torch import Tensor, nn


def mamba_st() -> Built:
    """Return the block of MambaST that scans a style together with a content, 16 by 16."""
    network = from_file("mamba_st", "models/vssm_arch.py")

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            options = SimpleNamespace(rnd_style=False)
            self.block = network.VSSBlock(hidden_dim=128, is_cross=True, d_state=16, args=options)

        def forward(self, content: Tensor, style: Tensor) -> Any:
            return self.block(content, style)

    content, style = image(2, 256, 1, 128)
    return Mixer(), (content, style)


def mamba_dfuse() -> Built:
    """Return MambaDFuse for two images of 32 pixels, one block a stage, with its own mixer."""
    from_file("mamba_ssm.modules.mamba_simple", "mamba_simple.py")
    from models.network import MambaDFuse

    model = MambaDFuse(img_size=32, embed_dim=60, Ex_depths=[1], Fusion_depths=[1, 1], Re_depths=[1])
    first, second = image(2, 1, 1, 32, 32)
    return model, (first, second)


def fusion_mamba() -> Built:
    """Return FusionMamba with one block a level for two images of 64 pixels."""
    from models.vmamba_Fusion_efficross import VSSM_Fusion

    depths = {"depths": [1, 1, 1, 1], "depths_decoder": [1, 1, 1, 1]}
    first, second = image(2, 1, 1, 64, 64)
    return VSSM_Fusion(in_chans=1, num_classes=1, **depths), (first, second)


def mamba_unet() -> Built:
    """Return Mamba-UNet, small."""
    from networks.mamba_sys import VSSM

    return VSSM(in_chans=1, depths=[2, 2, 2, 2]), (image(1, 1, 64, 64),)


def arm() -> Built:
    """Return ARM-base for fine-tuning, four blocks, on 64 pixels."""
    import models_mamba

    options = {"rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True, "final_pool_type": "mean"}
    options |= {"if_cls_token": True, "if_devide_out": True, "use_middle_cls_token": True, "bimamba_type": "v3"}
    model = models_mamba.ARM(img_size=64, patch_size=16, embed_dim=768, depth=4, if_abs_pos_embed=True, **options)
    return model, (image(1, 3, 64, 64),)


def video_mamba_pro() -> Built:
    """Return VideoMambaPro-tiny, four blocks, for four frames of 64 pixels."""
    network = from_file("video_mamba_pro", "videomambapro/models/videomambapro.py")
    return network.VisionMamba(img_size=64, depth=4, num_frames=4), (image(1, 3, 4, 64, 64),)


def em_net() -> Built:
    """Return EM-Net for a volume of 64 voxels a side, one block a level."""
    from models.em_net_model import EMNet

    model = EMNet(hidden_size=384, depths=[1, 1, 1, 1], fft_nums=[1, 1, 1, 1], in_shpae=[64, 64, 64])
    return model, (image(1, 1, 64, 64, 64),)


def nn_mamba() -> Built:
    """Return nnMamba for segmentation of 32 voxels a side."""
    from nnMamba import nnMambaSeg

    return nnMambaSeg(), (image(1, 1, 32, 32, 32),)


def light_m_unet() -> Built:
    """Return LightM-UNet for images of 64 pixels."""
    network = from_file("light_m_unet", "lightm-unet/nnunetv2/nets/LightMUNet.py")
    return network.LightMUNet(spatial_dims=2, init_filters=32, in_channels=1), (image(1, 1, 64, 64),)


def vssd() -> Built:
    """Return VSSD with one block a level, whose scan is Mamba-2's without its order."""
    from models.mamba2 import VMAMBA2

    model = VMAMBA2(img_size=64, embed_dim=64, depths=[1, 1, 1, 1], linear_attn_duality=False)
    return model, (image(1, 3, 64, 64),)


def mamba_fcs() -> Built:
    """Return the backbone of MambaFCS, whose VMamba is an early one with Triton kernels."""
    from models.vmamba import VSSM

    return VSSM(depths=[1, 1, 2, 1], dims=96, ssm_d_state=16, ssm_ratio=2.0, forward_type="v05_noz"), (
        image(1, 3, 64, 64),
    )


def pose_3dm() -> Built:
    """Return the block of Pose3DM for 27 frames of 17 joints."""
    package("lib", "lib")
    package("lib.model", "lib/model")
    from lib.model.mambablocks import BiSTSSMBlock

    return BiSTSSMBlock(hidden_dim=64, ssm_d_state=16, forward_type="v2_plus_poselimbs"), (image(1, 27, 17, 64),)
