"""Vision Mamba (Vim), weight-compatible with the official model, on any selective scan.

An image becomes a sequence of patches with a class token among them; every block scans the sequence in both
directions. Names, shapes and order of the `state_dict`, the options and their defaults are the official ones.

Source: Zhu et al. 2024, Vision Mamba; hustvl/Vim@dd0358a, vim/models_mamba.py, VisionMamba.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypedDict, Unpack

import torch
from torch import Tensor, nn

from scanlab.errors import ProblemError
from scanlab.models import block_stack
from scanlab.models.block import Block, DropPath, LayerNorm, RMSNorm, add_norm
from scanlab.models.mamba_block import BIMAMBA_TYPES, RECURRENCE, Mixer, MixerOptions
from scanlab.models.options import check_options
from scanlab.models.patch_embed import PatchEmbed
from scanlab.models.rope import Rope

if TYPE_CHECKING:
    from scanlab.runtime.dispatch import Scan

POOL_TYPES = ("none", "mean", "max", "all")


class VisionMamba(nn.Module):
    """The model; options not described here have the names, meanings and defaults of the official class.

    The official class takes and ignores any other keyword, misspelt ones included; this one raises TypeError.

    Args:
        img_size: Pixels, one number or (height, width).
        patch_size: Likewise; `stride` does not follow it.
        ssm_cfg: Options of the mixer, see MixerOptions.
        initializer_cfg: rescale_prenorm_residual and n_residuals_per_layer; initializer_range has no effect.
        fused_add_norm: Round as the official fused kernel does, see `add_norm`; so residual_in_fp32.
        dtype: Dtype of the weights, see `cast_`.
        ft_seq_len: Without effect, here as in the official code.
        if_bidirectional: Run layers in pairs, the second of which sees the sequence reversed; for the directions of a
            mixer see bimamba_type, which if_bimamba forces to v1.
        flip_img_sequences_ratio: Share of calls that reverse the sequence, in evaluation too.
        scan: Backend of the scans ("native", "chunked:chunk=32"), or a callable; None is this machine's choice.

    Raises:
        ProblemError: Option values make no model.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        stride: int = 16,
        depth: int = 24,
        embed_dim: int = 192,
        d_state: int = 16,
        channels: int = 3,
        num_classes: int = 1000,
        ssm_cfg: Mapping[str, object] | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        norm_epsilon: float = 1e-5,
        rms_norm: bool = True,
        initializer_cfg: Mapping[str, float] | None = None,
        fused_add_norm: bool = True,
        residual_in_fp32: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        ft_seq_len: int | None = None,
        pt_hw_seq_len: int = 14,
        if_bidirectional: bool = False,
        final_pool_type: str = "none",
        if_abs_pos_embed: bool = True,
        if_rope: bool = False,
        if_rope_residual: bool = False,
        flip_img_sequences_ratio: float = -1.0,
        if_bimamba: bool = False,
        bimamba_type: str = "v2",
        if_cls_token: bool = True,
        if_divide_out: bool = True,
        init_layer_scale: float | None = None,
        use_double_cls_token: bool = False,
        use_middle_cls_token: bool = True,
        *,
        scan: Scan | str | None = None,
    ) -> None:
        super().__init__()
        check_options(
            {
                "img_size": img_size,
                "patch_size": patch_size,
                "stride": stride,
                "embed_dim": embed_dim,
                "d_state": d_state,
                "channels": channels,
            },
            {"depth": depth, "num_classes": num_classes},
            {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate},
        )
        bimamba_type = "v1" if if_bimamba else bimamba_type
        for name, value, legal in (
            ("bimamba_type", bimamba_type, BIMAMBA_TYPES),
            ("final_pool_type", final_pool_type, POOL_TYPES),
        ):
            if value not in legal:
                raise ProblemError(f"{name}={value!r}: must be one of {', '.join(legal)}.")
        self.scan = scan
        self.embed_dim = embed_dim
        self.num_classes = num_classes
        self.fused_add_norm = fused_add_norm
        self.residual_in_fp32 = residual_in_fp32
        self.if_bidirectional = if_bidirectional
        self.final_pool_type = final_pool_type
        self.if_cls_token = if_cls_token
        self.use_middle_cls_token = use_middle_cls_token
        self.if_rope_residual = if_rope_residual
        self.flip_img_sequences_ratio = flip_img_sequences_ratio
        self.num_tokens = (2 if use_double_cls_token else 1) if if_cls_token else 0

        def embedding(rows: int) -> nn.Parameter:
            return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, rows, embed_dim), std=0.02))

        # the order of these assignments is the order of the official state_dict: parameters before modules
        self.patch_embed = PatchEmbed(_pair(img_size), _pair(patch_size), stride, channels, embed_dim)
        if self.num_tokens == 1:
            self.cls_token = embedding(1)
        elif self.num_tokens == 2:
            self.cls_token_head, self.cls_token_tail = embedding(1), embedding(1)
        length = self.patch_embed.num_patches + self.num_tokens
        self.pos_embed = embedding(length) if if_abs_pos_embed else None
        self.pos_drop = nn.Dropout(drop_rate)
        self.rope = self._rope(img_size, patch_size, length, pt_hw_seq_len) if if_rope else None
        self.head: nn.Module = nn.Linear(embed_dim, num_classes) if num_classes > 0 else nn.Identity()
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

        norm_class = RMSNorm if rms_norm else LayerNorm
        options = MixerOptions.of(ssm_cfg)
        self.drop_path = DropPath(drop_path_rate)
        self.layers = nn.ModuleList(
            Block(
                Mixer(
                    embed_dim,
                    state=d_state,
                    bimamba_type=bimamba_type,
                    divide_out=if_divide_out,
                    layer_scale=init_layer_scale,
                    options=options,
                    residual_scale=residual_scale(depth, initializer_cfg),
                ),
                norm_class(embed_dim, norm_epsilon),
                # rising from 0 one layer late, so that only the sum after the last layer gets the full rate: as trained
                drop_path_rate=drop_path_rate * max(0, index - 1) / max(1, depth - 1),
                fused=fused_add_norm,
                residual_in_fp32=residual_in_fp32,
            )
            for index in range(depth)
        )
        self.norm_f = norm_class(embed_dim, norm_epsilon)
        self.to(device=device)
        if dtype is not None:
            self.cast_(dtype)

    def _rope(
        self,
        img_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        length: int,
        pretrained_grid: int,
    ) -> Rope:
        if not isinstance(img_size, int) or not isinstance(patch_size, int) or self.embed_dim % 4:
            raise ProblemError(
                f"if_rope with img_size={img_size}, patch_size={patch_size}, embed_dim={self.embed_dim}:"
                " both sizes must be one number and embed_dim a multiple of 4."
            )
        grid = img_size // patch_size
        if length - length % 2 != grid**2:
            raise ProblemError(
                f"if_rope with {length} tokens: it rotates {length - length % 2} of them and has angles for {grid}"
                f" x {grid}; stride must equal patch_size, the grid be even, and there be one class token or none."
            )
        return Rope(self.embed_dim, grid, pretrained_grid)

    def cast_(self, dtype: torch.dtype) -> VisionMamba:
        """Cast the weights to `dtype` in place, except those of the recurrence, which keep at least float32."""
        for name, parameter in self.named_parameters():
            recurrent = name.rpartition(".")[2] in RECURRENCE
            parameter.data = parameter.data.to(torch.promote_types(dtype, torch.float32) if recurrent else dtype)
        return self

    @property
    def scan(self) -> Scan:
        """The scan that computes the recurrences; None, the name of a backend or a callable may be assigned."""
        return resolve_scan(self._scan)

    @scan.setter
    def scan(self, scan: Scan | str | None) -> None:
        resolve_scan(scan)  # a name that names nothing is refused here and not in the first forward pass
        self._scan = scan  # the name and not the function, so that models can be copied and pickled

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that an optimiser should not decay, as the official training asks for them."""
        return {"pos_embed", "cls_token", "dist_token", "cls_token_head", "cls_token_tail"}

    def forward(
        self,
        images: Tensor,
        return_features: bool = False,
        if_random_cls_token_position: bool = False,
        if_random_token_rank: bool = False,
    ) -> Tensor:
        """Return the logits of `images`, which are cast to the dtype of the weights.

        The official `inference_params` is left out: stepping through tokens one by one is only defined forward in time,
        and the official code silently drops the reverse direction there.

        Args:
            images: (batch, channels, height, width).
            return_features: Return the input of the head instead: (batch, embed_dim), or (batch, tokens, embed_dim) for
                the final_pool_type 'all' and 'max'.
            if_random_cls_token_position: The official option for randomised evaluation.
            if_random_token_rank: The official option for randomised evaluation.

        Returns:
            (batch, num_classes); without a class token and with final_pool_type 'all', (batch, tokens, num_classes).
        """
        features = self.forward_features(images, if_random_cls_token_position, if_random_token_rank)
        if return_features:
            return features
        logits: Tensor = self.head(features)
        # the official code also takes this maximum with a class token, where it runs over the classes: a bug
        return logits.amax(dim=1) if self.final_pool_type == "max" and not self.if_cls_token else logits

    def forward_features(
        self, images: Tensor, if_random_cls_token_position: bool = False, if_random_token_rank: bool = False
    ) -> Tensor:
        """Return the input of the head: the class token, the mean of both class tokens, or the pooled tokens."""
        tokens, class_positions = self._embed(images, if_random_cls_token_position)
        if if_random_token_rank:
            order = torch.randperm(tokens.shape[1])
            tokens = tokens[:, order]
            class_positions = [int(torch.nonzero(order == position)) for position in class_positions]
        # evaluation flips too, and the class positions are not turned with the tokens: a class token in front is
        # then read where the last patch is. Official, and weights trained with flips expect it.
        flipped = self.flip_img_sequences_ratio > 0 and self.flip_img_sequences_ratio - random.random() > 1e-5
        tokens = self._encode(tokens.flip(1), flipped=True) if flipped else self._encode(tokens)
        if self.if_cls_token:
            return tokens[:, class_positions].mean(dim=1)
        if self.final_pool_type == "none":
            return tokens[:, -1]
        return tokens.mean(dim=1) if self.final_pool_type == "mean" else tokens

    def feature_map(self, images: Tensor) -> Tensor:
        """Return the normalised patch tokens as an image: (batch, embed_dim, rows, columns), for dense tasks.

        Class tokens are left out; nothing is flipped.
        """
        tokens, class_positions = self._embed(images)
        tokens = self._encode(tokens)
        patches = [position for position in range(tokens.shape[1]) if position not in class_positions]
        return tokens[:, patches].mT.reshape(len(images), self.embed_dim, *self.patch_embed.grid_size)

    def _embed(self, images: Tensor, random_class_position: bool = False) -> tuple[Tensor, list[int]]:
        """Return the tokens that enter the first block, and the positions of the class tokens among them."""
        patches = self.patch_embed(images)
        batch, count, _ = patches.shape
        if self.num_tokens == 2:
            head, tail = (token.expand(batch, -1, -1) for token in (self.cls_token_head, self.cls_token_tail))
            tokens, class_positions = torch.cat((head, patches, tail), dim=1), [0, count + 1]
        elif self.num_tokens == 1:
            if self.use_middle_cls_token:
                position = count // 2
            else:
                position = random.randint(0, count) if random_class_position else 0
            token = self.cls_token.expand(batch, -1, -1)
            tokens = torch.cat((patches[:, :position], token, patches[:, position:]), dim=1)
            class_positions = [position]
        else:
            tokens, class_positions = patches, []
        if self.pos_embed is not None:
            tokens = self.pos_drop(tokens + self.pos_embed)
        return tokens, class_positions

    def _encode(self, tokens: Tensor, flipped: bool = False) -> Tensor:
        """Return the tokens (batch, length, embed_dim) after all blocks and the last norm."""
        hidden, residual, scan = tokens, None, self.scan
        if self.if_bidirectional:
            # the sum of both layers' residuals doubles the stream at each pair, and an odd last layer is not used
            for forward, reverse in zip(self.layers[0::2], self.layers[1::2], strict=False):
                hidden, residual = self._rotate(hidden, residual)
                reversed_residual = None if residual is None else residual.flip(1)
                hidden_forward, residual_forward = forward(hidden, residual, scan)
                hidden_reverse, residual_reverse = reverse(hidden.flip(1), reversed_residual, scan)
                hidden, residual = hidden_forward + hidden_reverse.flip(1), residual_forward + residual_reverse.flip(1)
        elif self.rope is None and (stacked := block_stack.run(self.layers, hidden, scan)) is not None:
            hidden, residual = stacked
        else:
            for layer in self.layers:
                hidden, residual = self._rotate(hidden, residual, flipped)
                hidden, residual = layer(hidden, residual, scan)
        normed, _ = add_norm(
            self.drop_path(hidden),
            residual,
            self.norm_f,
            fused=self.fused_add_norm,
            residual_in_fp32=self.residual_in_fp32,
        )
        return normed

    def _rotate(self, hidden: Tensor, residual: Tensor | None, flipped: bool = False) -> tuple[Tensor, Tensor | None]:
        if self.rope is None:
            return hidden, residual
        if residual is not None and self.if_rope_residual:
            residual = self.rope(residual, flipped)
        return self.rope(hidden, flipped), residual


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if len(size) != 2:
        raise ProblemError(f"{size}: must be one number or (height, width).")
    return size


def residual_scale(depth: int, initializer_cfg: Mapping[str, float] | None) -> float:
    """Return the factor of the initial output weights of mixers, 1 / sqrt(depth) by default."""
    names = ("initializer_range", "rescale_prenorm_residual", "n_residuals_per_layer")
    options = initializer_cfg or {}
    unknown = sorted(set(options) - set(names))
    if unknown:
        raise ProblemError(f"initializer_cfg holds {', '.join(unknown)}: it takes {', '.join(names)}.")
    if not options.get("rescale_prenorm_residual", True):
        return 1.0
    return 1.0 / math.sqrt(options.get("n_residuals_per_layer", 1) * depth)


def resolve_scan(scan: Scan | str | None) -> Scan:
    """Return the scan that `scan` names: this machine's choice for None, a backend for a name, or `scan` itself."""
    if scan is not None and not isinstance(scan, str):
        return scan
    from scanlab.runtime import dispatch

    return dispatch.scan if scan is None else dispatch.scan_dispatcher(scan)


class ReleasedOptions(TypedDict, total=False):
    """Options that every released model takes."""

    img_size: int | tuple[int, int]
    num_classes: int
    drop_rate: float
    drop_path_rate: float
    device: torch.device | str | None
    dtype: torch.dtype | None
    scan: Scan | str | None


def _released(embed_dim: int, stride: int, options: ReleasedOptions) -> VisionMamba:
    # final_pool_type as in the official names; it has no effect, because there is a class token
    return VisionMamba(embed_dim=embed_dim, stride=stride, depth=24, final_pool_type="mean", **options)


def vim_tiny(**options: Unpack[ReleasedOptions]) -> VisionMamba:
    """Build Vim-tiny: 7,148,008 parameters, 197 tokens; vim_tiny_patch16_224_..._with_midclstok_div2."""
    return _released(192, 16, options)


def vim_small(**options: Unpack[ReleasedOptions]) -> VisionMamba:
    """Build Vim-small: 25,796,584 parameters, 197 tokens; vim_small_patch16_224_..._with_midclstok_div2."""
    return _released(384, 16, options)


def vim_base(**options: Unpack[ReleasedOptions]) -> VisionMamba:
    """Build Vim-base: 97,598,440 parameters, 197 tokens; vim_base_patch16_224_..._with_middle_cls_token_div2."""
    return _released(768, 16, options)


def vim_tiny_stride8(**options: Unpack[ReleasedOptions]) -> VisionMamba:
    """Build Vim-tiny with overlapping patches: 7,250,344 parameters, 730 tokens; vim_tiny_patch16_stride8_224_..."""
    return _released(192, 8, options)


def vim_small_stride8(**options: Unpack[ReleasedOptions]) -> VisionMamba:
    """Build Vim-small with overlapping patches: 26,001,256 parameters, 730 tokens; vim_small_patch16_stride8_224_..."""
    return _released(384, 8, options)


RELEASED: Mapping[str, Callable[..., VisionMamba]] = {
    constructor.__name__: constructor
    for constructor in (vim_tiny, vim_small, vim_base, vim_tiny_stride8, vim_small_stride8)
}
