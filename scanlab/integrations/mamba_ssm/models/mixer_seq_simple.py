"""Language model of `mamba_ssm.models.mixer_seq_simple`, of Mamba-1, Mamba-2 and attention layers.

Source: state-spaces/mamba@e9594ce, mamba_ssm/models/mixer_seq_simple.py, config_mamba.py.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scanlab.errors import ProblemError, UnavailableError
from scanlab.integrations.mamba_ssm.models.config_mamba import MambaConfig
from scanlab.integrations.mamba_ssm.modules.block import Block, Cache
from scanlab.integrations.mamba_ssm.modules.mamba2 import Mamba2
from scanlab.integrations.mamba_ssm.modules.mamba_simple import Mamba
from scanlab.integrations.mamba_ssm.modules.mha import MHA
from scanlab.integrations.mamba_ssm.modules.mlp import GatedMLP
from scanlab.integrations.mamba_ssm.ops.triton.layer_norm import RMSNorm, layer_norm_fn
from scanlab.integrations.mamba_ssm.utils.generation import GenerationMixin
from scanlab.integrations.mamba_ssm.utils.hf import load_config_hf, load_state_dict_hf

MIXERS: dict[str, type[nn.Module]] = {"Mamba1": Mamba, "Mamba2": Mamba2, "attention": MHA}


class CausalLMOutput(NamedTuple):
    """Output of a language model: logits (batch, length, vocabulary)."""

    logits: Tensor


def create_block(
    d_model: int,
    d_intermediate: int | dict[str, Any] | None = 0,
    ssm_cfg: dict[str, Any] | None = None,
    attn_layer_idx: list[int] | None = None,
    attn_cfg: dict[str, Any] | None = None,
    norm_epsilon: float = 1e-5,
    rms_norm: bool = False,
    residual_in_fp32: bool = False,
    fused_add_norm: bool = False,
    layer_idx: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Block:
    """Return a block of a language model, by the arguments of mamba_ssm 2.x or of 1.x.

    Args:
        d_model: Width of the model.
        d_intermediate: Hidden width of the MLP behind the mixer, 0 for none. In 1.x, ssm_cfg has this place.
        ssm_cfg: Arguments of the mixer.
        attn_layer_idx: Indices of the layers that are attention.
        attn_cfg: Arguments of attention layers, those of MHA.
        norm_epsilon: Added to the variance of the norms.
        rms_norm: RMSNorm instead of LayerNorm.
        residual_in_fp32: Keep the residual in float32.
        fused_add_norm: Add and normalise in one op.
        layer_idx: Index of the layer.
        device: Device of the weights.
        dtype: Dtype of the weights.

    Raises:
        UnavailableError: The layer is of another kind than Mamba-1, Mamba-2 and attention.
        ProblemError: Arguments of 1.x beyond ssm_cfg are given by position.
    """
    if isinstance(d_intermediate, int):
        hidden_features, options = d_intermediate, dict(ssm_cfg or {})
    elif ssm_cfg is None and attn_layer_idx is None and attn_cfg is None:
        hidden_features, options = 0, dict(d_intermediate or {})
    else:
        raise ProblemError("create_block with ssm_cfg in second place, as in mamba_ssm 1.x: name all others.")
    layer = options.pop("layer", "Mamba1")
    if attn_layer_idx and layer_idx in attn_layer_idx:
        layer, options = "attention", dict(attn_cfg or {})
    if layer not in MIXERS:
        raise UnavailableError(
            f"layer {layer_idx} is {layer}: scanlab, which stands in for mamba_ssm, has {', '.join(MIXERS)}; for"
            " this one install mamba_ssm, on a machine with CUDA."
        )
    where: dict[str, Any] = {"device": device, "dtype": dtype}
    mlp = functools.partial(GatedMLP, hidden_features=hidden_features, out_features=d_model, **where)
    block = Block(
        d_model,
        functools.partial(MIXERS[layer], layer_idx=layer_idx, **options, **where),
        mlp if hidden_features else nn.Identity,
        functools.partial(RMSNorm if rms_norm else nn.LayerNorm, eps=norm_epsilon, **where),
        fused_add_norm=fused_add_norm,
        residual_in_fp32=residual_in_fp32,
    )
    block.layer_idx = layer_idx
    return block


@torch.no_grad()
def _init_weights(
    module: nn.Module,
    n_layer: int,
    initializer_range: float = 0.02,
    rescale_prenorm_residual: bool = True,
    n_residuals_per_layer: int = 1,
) -> None:
    """Initialise one module of a language model; `model.apply` calls this for each.

    Biases become zero where they are not marked `_no_reinit`, embeddings normal. The output projection of a branch is
    drawn anew, smaller by the square root of the number of branches, so that deep residual streams do not grow.
    """
    if isinstance(module, nn.Linear):
        if module.bias is not None and not getattr(module.bias, "_no_reinit", False):
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=initializer_range)
    if rescale_prenorm_residual:
        for name, parameter in module.named_parameters():
            if name in ("out_proj.weight", "fc2.weight"):
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
                parameter.div_(math.sqrt(n_residuals_per_layer * n_layer))


def _initialise(model: nn.Module, n_layer: int, d_intermediate: int, initializer_cfg: Mapping[str, Any] | None) -> None:
    residuals = 2 if d_intermediate else 1
    options = {"n_residuals_per_layer": residuals, **(initializer_cfg or {})}
    model.apply(functools.partial(_init_weights, n_layer=n_layer, **options))


class MixerModel(nn.Module):
    """Backbone of a language model: token ids (batch, length) -> (batch, length, d_model).

    Raises:
        UnavailableError: A layer is of another kind than Mamba-1, Mamba-2 and attention.
    """

    def __init__(
        self,
        d_model: int,
        n_layer: int,
        d_intermediate: int,
        vocab_size: int,
        ssm_cfg: dict[str, Any] | None = None,
        attn_layer_idx: list[int] | None = None,
        attn_cfg: dict[str, Any] | None = None,
        norm_epsilon: float = 1e-5,
        rms_norm: bool = False,
        initializer_cfg: dict[str, Any] | None = None,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.residual_in_fp32 = residual_in_fp32
        self.fused_add_norm = fused_add_norm
        self.embedding = nn.Embedding(vocab_size, d_model, device=device, dtype=dtype)
        self.layers = nn.ModuleList(
            create_block(
                d_model,
                d_intermediate,
                ssm_cfg,
                attn_layer_idx,
                attn_cfg,
                norm_epsilon,
                rms_norm,
                residual_in_fp32,
                fused_add_norm,
                index,
                device,
                dtype,
            )
            for index in range(n_layer)
        )
        norm_class: Any = RMSNorm if rms_norm else nn.LayerNorm
        self.norm_f = norm_class(d_model, eps=norm_epsilon, device=device, dtype=dtype)
        _initialise(self, n_layer, d_intermediate, initializer_cfg)

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, Cache]:
        """Return zero states of every layer, by its index."""
        blocks = enumerate(layer for layer in self.layers if isinstance(layer, Block))
        return {index: block.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype) for index, block in blocks}

    def forward(self, input_ids: Tensor, inference_params: Any = None) -> Tensor:
        """Return the normalised output (batch, length, d_model) of the last layer for input_ids (batch, length)."""
        hidden, residual = self.embedding(input_ids), None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual, inference_params=inference_params)
        norm: Any = self.norm_f
        if not self.fused_add_norm:
            total = hidden if residual is None else hidden + residual
            normed: Tensor = norm(total.to(norm.weight.dtype))
            return normed
        out = layer_norm_fn(
            hidden,
            norm.weight,
            norm.bias,
            residual=residual,
            eps=norm.eps,
            residual_in_fp32=self.residual_in_fp32,
            is_rms_norm=isinstance(norm, RMSNorm),
        )
        assert isinstance(out, Tensor)
        return out


class MambaLMHeadModel(nn.Module, GenerationMixin):
    """Language model with the official parameter names."""

    def __init__(
        self,
        config: MambaConfig,
        initializer_cfg: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        multiple = config.pad_vocab_size_multiple
        vocabulary = -(-config.vocab_size // multiple) * multiple
        self.backbone = MixerModel(
            config.d_model,
            config.n_layer,
            config.d_intermediate,
            vocabulary,
            config.ssm_cfg,
            config.attn_layer_idx,
            config.attn_cfg,
            rms_norm=config.rms_norm,
            initializer_cfg=initializer_cfg,
            fused_add_norm=config.fused_add_norm,
            residual_in_fp32=config.residual_in_fp32,
            device=device,
            dtype=dtype,
        )
        self.lm_head = nn.Linear(config.d_model, vocabulary, bias=False, device=device, dtype=dtype)
        _initialise(self, config.n_layer, config.d_intermediate, initializer_cfg)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make the weight of the head that of the embedding where the configuration says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, Cache]:
        """Return zero states of every layer, by its index."""
        return self.backbone.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        inference_params: Any = None,
        num_last_tokens: int = 0,
    ) -> CausalLMOutput:
        """Return the logits of each token.

        Args:
            input_ids: (batch, length).
            position_ids: Ignored. A Mamba has no positions.
            inference_params: Cache of a generation.
            num_last_tokens: Return the logits of the last tokens only; 0 means all.
        """
        hidden = self.backbone(input_ids, inference_params=inference_params)
        return CausalLMOutput(self.lm_head(hidden[:, -num_last_tokens:]))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> MambaLMHeadModel:
        """Return a published model, or one in a folder."""
        config = MambaConfig(**load_config_hf(pretrained_model_name))
        model = cls(config, device=device, dtype=dtype, **kwargs)
        model.load_state_dict(load_state_dict_hf(pretrained_model_name, device=device, dtype=dtype))
        return model

    def save_pretrained(self, save_directory: str) -> None:
        """Write the weights and the configuration to a folder, as `from_pretrained` reads them."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), folder / "pytorch_model.bin")
        (folder / "config.json").write_text(json.dumps(asdict(self.config), indent=4))
