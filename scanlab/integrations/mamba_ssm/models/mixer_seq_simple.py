"""The language model of `mamba_ssm.models`, of Mamba-1 layers: its configuration, its backbone, its head.

Source: state-spaces/mamba@e9594ce, mamba_ssm/models/mixer_seq_simple.py, config_mamba.py.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scanlab.errors import UnavailableError
from scanlab.integrations.mamba_ssm.models.config_mamba import MambaConfig
from scanlab.integrations.mamba_ssm.modules.block import Block
from scanlab.integrations.mamba_ssm.modules.mamba_simple import Mamba, State
from scanlab.integrations.mamba_ssm.ops.triton.layer_norm import RMSNorm, layer_norm_fn
from scanlab.integrations.mamba_ssm.utils.generation import GenerationMixin
from scanlab.integrations.mamba_ssm.utils.hf import load_config_hf, load_state_dict_hf


class CausalLMOutput(NamedTuple):
    """logits (batch, length, vocabulary)."""

    logits: Tensor


class MixerModel(nn.Module):
    """Embedding, Mamba-1 blocks, norm: token ids (batch, length) -> (batch, length, d_model).

    Raises UnavailableError for layers of another kind: Mamba-2, attention, or with an MLP.
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
        options = dict(ssm_cfg or {})
        layer = options.pop("layer", "Mamba1")
        if layer != "Mamba1" or attn_layer_idx or d_intermediate:
            raise UnavailableError(
                f"layers of {layer}, attention at {attn_layer_idx or 'none'}, MLPs of {d_intermediate}: scanlab, which"
                " stands in for mamba_ssm, has Mamba-1 alone; for these install mamba_ssm, on a machine with CUDA."
            )
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.residual_in_fp32 = residual_in_fp32
        self.fused_add_norm = fused_add_norm
        self.embedding = nn.Embedding(vocab_size, d_model, **where)
        norm: Any = functools.partial(RMSNorm if rms_norm else nn.LayerNorm, eps=norm_epsilon, **where)
        self.layers = nn.ModuleList(
            Block(
                d_model,
                functools.partial(Mamba, layer_idx=index, **options, **where),
                norm,
                fused_add_norm=fused_add_norm,
                residual_in_fp32=residual_in_fp32,
            )
            for index in range(n_layer)
        )
        self.norm_f = norm(d_model)
        self._initialise(n_layer, **(initializer_cfg or {}))

    @torch.no_grad()
    def _initialise(
        self,
        n_layer: int,
        initializer_range: float = 0.02,
        rescale_prenorm_residual: bool = True,
        n_residuals_per_layer: int = 1,
    ) -> None:
        """Calm embeddings, and mixers whose output shrinks with the depth."""
        nn.init.normal_(self.embedding.weight, std=initializer_range)
        for name, parameter in self.named_parameters():
            if rescale_prenorm_residual and name.endswith("out_proj.weight"):
                parameter.div_((n_residuals_per_layer * n_layer) ** 0.5)
            elif name.endswith("_proj.bias") and not hasattr(parameter, "_no_reinit"):
                nn.init.zeros_(parameter)

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, State]:
        """Zero states of every layer, by its index."""
        blocks = enumerate(layer for layer in self.layers if isinstance(layer, Block))
        return {index: block.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype) for index, block in blocks}

    def forward(self, input_ids: Tensor, inference_params: Any = None) -> Tensor:
        """input_ids (batch, length) -> (batch, length, d_model)."""
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
    """A Mamba-1 language model with the official parameter names: token ids -> logits."""

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
        self.tie_weights()

    def tie_weights(self) -> None:
        """Where the configuration says so, the head is the embedding."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, State]:
        """Zero states of every layer, by its index."""
        return self.backbone.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        inference_params: Any = None,
        num_last_tokens: int = 0,
    ) -> CausalLMOutput:
        """input_ids (batch, length) -> logits (batch, length, vocabulary), of num_last_tokens alone where that is > 0.

        position_ids are taken for the signature's sake: a Mamba has none.
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
        """A published model, or one in a folder."""
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
