"""Models of public repositories: constructors and inputs.

A builder imports from the repository, which is on the search path when it is called, and returns a model and its
inputs. The sizes are those that the repository publishes where the references can differentiate them in a minute: their
time grows with the square of the length, so that most images have 64 pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from checkouts import Built, from_file, image, package, stand_in
from images import mair, mamba_ad, mamba_mil, pan_mamba, sigma, simba, ultralight
from mixers import aim, black_mamba, coupled_mamba, har_mamba, i2dtl, nakul, time_series_library, zamba2
from sequences import caduceus, dis, hydra, mamba3d, mamba4rec, s_mamba, se_mamba, time_machine
from torch import Tensor, nn
from vision import (
    arm,
    em_net,
    fusion_mamba,
    light_m_unet,
    mamba_dfuse,
    mamba_fcs,
    mamba_st,
    mamba_unet,
    nn_mamba,
    pose_3dm,
    video_mamba_pro,
    vssd,
)


@dataclass(frozen=True)
class Client:
    """One model of one repository.

    Attributes:
        repository: "owner/name" on GitHub; its checkout is the folder "owner+name".
        model: Name of the model.
        build: Returns the model and its inputs.
        paths: Folders of the checkout to import from.
        forks: Folders with the repository's own mamba_ssm, to be imported from where the drop-in's does not do.
    """

    repository: str
    model: str
    build: Callable[[], Built]
    paths: tuple[str, ...] = (".",)
    forks: tuple[str, ...] = ()


def _language_model(**options: Any) -> Built:
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    model = MambaLMHeadModel(MambaConfig(d_model=768, n_layer=4, vocab_size=1000, **options))
    return model, (torch.randint(1000, (1, 128), generator=torch.Generator().manual_seed(1)),)


def mamba() -> Built:
    """Return Mamba-130m, four layers."""
    return _language_model()


def vim() -> Built:
    """Return Vim-tiny."""
    import models_mamba

    return models_mamba.vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2(), (
        image(1, 3, 224, 224),
    )


def vmamba(size: int) -> Built:
    """Return VMamba-tiny, s1l8."""
    from models.vmamba import vmamba_tiny_s1l8

    return vmamba_tiny_s1l8(), (image(1, 3, size, size),)


def vanilla_vmamba(size: int) -> Built:
    """Return VMamba-tiny of the first paper."""
    from models.vmamba import vanilla_vmamba_tiny

    return vanilla_vmamba_tiny(), (image(1, 3, size, size),)


def video_mamba() -> Built:
    """Return VideoMamba-tiny for images."""
    from models.videomamba import videomamba_tiny

    return videomamba_tiny(), (image(1, 3, 224, 224),)


def seg_mamba() -> Built:
    """Return SegMamba with one block a level, on a cube of 32 voxels."""
    from model_segmamba.segmamba import SegMamba

    return SegMamba(in_chans=4, out_chans=4, depths=[1, 1, 1, 1]), (image(1, 4, 32, 32, 32),)


def u_mamba() -> Built:
    """Return U-Mamba with its block at the bottleneck, 2D."""
    stand_in("nnunetv2.utilities.plans_handling.plans_handler", ConfigurationManager=None, PlansManager=None)
    stand_in("nnunetv2.utilities.network_initialization", InitWeights_He=None)
    stand_in("nnunetv2")
    stand_in("nnunetv2.utilities")
    stand_in("nnunetv2.utilities.plans_handling")
    bottleneck = from_file("umamba_bot_2d", "nnunetv2/nets/UMambaBot_2d.py")
    model = bottleneck.UMambaBot(
        input_channels=1,
        n_stages=4,
        features_per_stage=[32, 64, 128, 256],
        conv_op=nn.Conv2d,
        kernel_sizes=[[3, 3]] * 4,
        strides=[[1, 1], [2, 2], [2, 2], [2, 2]],
        n_conv_per_stage=[2, 2, 2, 2],
        num_classes=2,
        n_conv_per_stage_decoder=[2, 2, 2],
        conv_bias=True,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={},
    )
    return model, (image(1, 1, 160, 160),)


def swin_umamba() -> Built:
    """Return Swin-UMamba."""
    stand_in("nnunetv2.utilities.plans_handling.plans_handler", ConfigurationManager=None, PlansManager=None)
    stand_in("nnunetv2")
    stand_in("nnunetv2.utilities")
    stand_in("nnunetv2.utilities.plans_handling")
    network = from_file("swin_umamba", "nnunetv2/nets/SwinUMamba.py")
    return network.SwinUMamba(in_chans=1, out_chans=2), (image(1, 1, 64, 64),)


def point_mamba() -> Built:
    """Return the mixer of PointMamba, on the tokens of two serializations of 64 groups of points."""
    stand_in("utils.misc")
    stand_in("knn_cuda", KNN=None)
    stand_in("extensions.chamfer_dist", ChamferDistanceL1=None, ChamferDistanceL2=None)
    package("models", "models")
    from models.point_mamba_scan import MixerModel

    tokens, positions = image(2, 1, 128, 384)
    return MixerModel(d_model=384, n_layer=12, drop_path=[0.0] * 12), (tokens, positions)


def mamba_yolo() -> Built:
    """Return the block of Mamba-YOLO."""
    for name in ("ultralytics", "ultralytics.nn", "ultralytics.nn.modules"):
        package(name, name.replace(".", "/"))
    import ultralytics.nn.modules.mamba_yolo as blocks

    model = nn.Sequential(blocks.SimpleStem(3, 96), blocks.XSSBlock(96, 96), blocks.VSSBlock(96, 96))
    return model, (image(1, 3, 64, 64),)


def local_vim() -> Built:
    """Return LocalVim-tiny."""
    package("lib.models", "lib/models")
    from lib.models.local_vim import local_vim_tiny

    return local_vim_tiny(), (image(1, 3, 224, 224),)


def local_vmamba() -> Built:
    """Return LocalVMamba-tiny."""
    package("lib.models", "lib/models")
    from lib.models.local_vmamba import local_vssm_tiny

    return local_vssm_tiny(), (image(1, 3, 64, 64),)


def efficient_vmamba() -> Built:
    """Return EfficientVMamba-tiny."""
    package("lib.models", "lib/models")
    from lib.models.mamba.efficient_mamba import EfficientVSSM

    return EfficientVSSM(depths=[2, 2, 4, 2], dims=48), (image(1, 3, 64, 64),)


def ms_vmamba() -> Built:
    """Return MSVMamba-nano."""
    from models.vmamba import VSSM

    return VSSM(depths=[1, 2, 5, 2], dims=48, ssm_d_state=1, ssm_ratio=2.0), (image(1, 3, 64, 64),)


def change_mamba() -> Built:
    """Return MambaBCD, the backbone and decoder of ChangeMamba."""
    package("MambaCD", ".")
    from MambaCD.changedetection.models.Mamba_backbone import Backbone_VSSM

    model = Backbone_VSSM(
        out_indices=(0, 1, 2, 3), pretrained=None, depths=[2, 2, 4, 2], dims=96, ssm_d_state=16, forward_type="v3"
    )
    return model, (image(1, 3, 64, 64),)


def group_mamba() -> Built:
    """Return GroupMamba-tiny."""
    from models.groupmamba import groupmamba_tiny

    return groupmamba_tiny(), (image(1, 3, 64, 64),)


def mamba_vision() -> Built:
    """Return MambaVision-T."""
    package("mambavision", "mambavision")
    package("mambavision.models", "mambavision/models")
    from mambavision.models.mamba_vision import mamba_vision_T

    return mamba_vision_T(), (image(1, 3, 224, 224),)


def plain_mamba() -> Built:
    """Return the layer of PlainMamba-L1."""
    stand_in("mmcv")
    stand_in("mmcv.cnn")
    stand_in("mmcv.cnn.bricks")
    stand_in("mmcv.cnn.bricks.transformer", build_dropout=lambda _: nn.Identity())
    stand_in("mmcv.cnn.utils")
    stand_in("mmcv.cnn.utils.weight_init", trunc_normal_=nn.init.trunc_normal_)
    layers = from_file("plain_mamba_layer", "mmcls/plain_mamba_dev/models/plain_mamba/plain_mamba_layer.py")

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layers.PlainMamba2D(d_model=192, default_hw_shape=(14, 14))

        def forward(self, x: Tensor) -> Any:
            return self.layer(x, (14, 14))

    return Mixer(), (image(1, 196, 192),)


def vm_unet() -> Built:
    """Return VM-UNet."""
    from models.vmunet.vmunet import VMUNet

    return VMUNet(depths=[2, 2, 2, 2], depths_decoder=[2, 2, 2, 1]), (image(1, 3, 64, 64),)


def mamba_ir() -> Built:
    """Return MambaIR for denoising."""
    stand_in("basicsr")
    stand_in("basicsr.utils")

    class Registry:
        def register(self) -> Callable[[Any], Any]:
            return lambda registered: registered

    stand_in("basicsr.utils.registry", ARCH_REGISTRY=Registry())
    network = from_file("mambair_arch", "basicsr/archs/mambair_arch.py")
    return network.MambaIR(img_size=24, embed_dim=60, depths=(2, 2), upscale=1), (image(1, 3, 24, 24),)


def zigma() -> Built:
    """Return ZigMa-S/2."""
    from model_zigma import ZigMa

    model = ZigMa(in_channels=4, embed_dim=384, depth=4, img_dim=32, patch_size=2, scan_type="zigzagN8")
    return model, (image(1, 4, 32, 32), torch.tensor([0.3]))


def mamba_out() -> Built:
    """Return MambaOut-femto, which has no scan."""
    from models.mambaout import mambaout_femto

    return mambaout_femto(), (image(1, 3, 224, 224),)


CLIENTS = (
    Client("state-spaces/mamba", "Mamba-130m, 4 layers, 128 tokens", mamba, paths=(), forks=(".",)),
    Client("hustvl/Vim", "Vim-tiny, 224 px", vim, ("vim",), ("mamba-1p1p1",)),
    *(
        Client("MzeroMiko/VMamba", f"{name}, {size} px", partial(build, size), ("classification",))
        for name, build in (("VMamba-tiny (s1l8)", vmamba), ("VMamba-tiny of the first paper", vanilla_vmamba))
        for size in (64, 224)
    ),
    Client("OpenGVLab/VideoMamba", "VideoMamba-tiny, 224 px", video_mamba, ("videomamba/image_sm",), ("mamba",)),
    Client("ge-xing/SegMamba", "SegMamba, one block a level, 32 voxels a side", seg_mamba, (".",), ("mamba",)),
    Client("bowang-lab/U-Mamba", "U-Mamba (bottleneck), 160 px", u_mamba, ("umamba",)),
    Client("JiarunLiu/Swin-UMamba", "Swin-UMamba, 64 px", swin_umamba, ("swin_umamba",)),
    Client("LMD0311/PointMamba", "mixer of PointMamba, 128 tokens", point_mamba, (".",), ("mamba",)),
    Client("HZAI-ZJNU/Mamba-YOLO", "stem and blocks of Mamba-YOLO, 64 px", mamba_yolo),
    Client("hunto/LocalMamba", "LocalVim-tiny, 224 px", local_vim, ("classification",), ("mamba-1p1p1",)),
    Client("hunto/LocalMamba", "LocalVMamba-tiny, 64 px", local_vmamba, ("classification",), ("mamba-1p1p1",)),
    Client("TerryPei/EfficientVMamba", "EfficientVMamba-tiny, 64 px", efficient_vmamba, ("classification",)),
    Client("YuHengsss/MSVMamba", "MSVMamba-nano, 64 px", ms_vmamba, ("classification",)),
    Client("ChenHongruixuan/MambaCD", "backbone of ChangeMamba, 64 px", change_mamba),
    Client("Amshaker/GroupMamba", "GroupMamba-tiny, 64 px", group_mamba, ("classification",)),
    Client("NVlabs/MambaVision", "MambaVision-T, 224 px", mamba_vision),
    Client("ChenhongyiYang/PlainMamba", "mixer of PlainMamba-L1, 14 by 14", plain_mamba),
    Client("JCruan519/VM-UNet", "VM-UNet, small, 64 px", vm_unet),
    Client("csguoh/MambaIR", "MambaIR, 2 groups, 24 px", mamba_ir),
    Client("CompVis/zigma", "ZigMa-S/2, 4 layers, 32 px", zigma),
    Client("XLearning-SCU/2025-CVPR-MaIR", "MaIR, 2 groups, 32 px", mair, ("basicsr/archs",)),
    Client("alexhe101/Pan-Mamba", "mixer of Pan-Mamba, 256 tokens", pan_mamba),
    Client("isyangshu/MambaMIL", "MambaMIL (SRMamba), 300 patches", partial(mamba_mil, "SRMamba")),
    Client("isyangshu/MambaMIL", "MambaMIL (BiMamba), 300 patches", partial(mamba_mil, "BiMamba")),
    Client("lewandofskee/MambaAD", "mixer of MambaAD, 16 by 16", mamba_ad),
    Client("zifuwan/Sigma", "fusion of Sigma, 16 by 16", sigma),
    Client("badripatro/simba", "SiMBA, one block a level, 64 px", simba, ("classification",)),
    Client("wurenkai/UltraLight-VM-UNet", "UltraLight VM-UNet, 64 px", ultralight),
    Client("kuleshov-group/caduceus", "Caduceus, 4 layers, 256 nucleotides", caduceus),
    Client("Atik-Ahamed/TimeMachine", "TimeMachine, 7 series", time_machine, ("TimeMachine_supervised",)),
    Client("RoyChao19477/SEMamba", "SEMamba, 2 blocks, 32 frames", se_mamba, (".",), ("mamba-1_2_0_post1",)),
    Client("wzhwzhwzh0921/S-D-Mamba", "S-Mamba, 321 series", s_mamba),
    Client("feizc/DiS", "DiS-S/2, 6 blocks, 32 px", dis, (".",), ("mamba",)),
    Client("goombalab/hydra", "layer of Hydra (Mamba-2), 256 tokens", hydra),
    Client("chengkai-liu/Mamba4Rec", "Mamba4Rec, 200 items", mamba4rec),
    Client("xhanxu/Mamba3D", "encoder of Mamba3D, 128 groups", mamba3d, (".", "models/bimamba_ssm")),
    Client("FilippoBotti/MambaST", "block of MambaST, 16 by 16", mamba_st),
    Client("Lizhe1228/MambaDFuse", "MambaDFuse, one block a stage, 32 px", mamba_dfuse),
    Client("millieXie/FusionMamba", "FusionMamba, one block a level, 64 px", fusion_mamba, (".",)),
    Client("ziyangwang007/Mamba-UNet", "Mamba-UNet, small, 64 px", mamba_unet, ("code",), ("mamba",)),
    Client("OliverRensu/ARM", "ARM-base, 4 blocks, 64 px", arm, ("Finetuning",)),
    Client("hotfinda/VideoMambaPro", "VideoMambaPro-tiny, 4 blocks, 4 frames, 64 px", video_mamba_pro),
    Client("zang0902/EM-Net", "EM-Net, one block a level, 64 voxels a side", em_net, (".",), ("mamba",)),
    Client("Felixqaq/nnMamba", "nnMamba, 32 voxels a side", nn_mamba),
    Client("MrBlankness/LightM-UNet", "LightM-UNet, 64 px", light_m_unet),
    Client("YuHengsss/VSSD", "VSSD (Mamba-2), one block a level, 64 px", vssd, ("classification",)),
    Client("mathismagron/MambaFCS", "backbone of MambaFCS, 64 px", mamba_fcs, ("classification",)),
    Client("Reus3237/Pose3DM", "block of Pose3DM, 27 frames", pose_3dm),
    Client("Zyphra/BlackMamba", "BlackMamba, 4 layers, 128 tokens", black_mamba),
    Client("Zyphra/Zamba2", "mixer of Zamba2 (Mamba-2), 128 tokens", zamba2),
    Client("hustcselwb/coupled-mamba", "mixer of Coupled Mamba, 64 steps", coupled_mamba),
    Client("dianoDouble/HARMamba", "HARMamba, 4 blocks, 9 sensors", har_mamba, (".",), ("mamba",)),
    Client("thuml/Time-Series-Library", "forecaster called Mamba, 7 series", time_series_library),
    Client("hp-l33/AiM", "Mamba-2 of AiM, 4 layers, 128 tokens", aim),
    Client("badripatro/nakul", "MambaEEGNet, 22 channels", nakul),
    Client("papercode-2025/I2DTL", "mixer of I2DTL, 64 tokens", i2dtl),
    Client("yuweihao/MambaOut", "MambaOut-femto (no scan), 224 px", mamba_out, (".",)),
)
