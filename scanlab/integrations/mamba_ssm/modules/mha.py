"""Attention of `mamba_ssm.modules.mha`, with its parameter names; hybrid language models have it in some layers.

Source: state-spaces/mamba@e9594ce, mamba_ssm/modules/mha.py, and RotaryEmbedding of Dao-AILab/flash-attention. A cached
step attends to all steps before it and continues the convolution's inputs, as in a forward pass over the whole
sequence; upstream's fallback without flash_attn attends to the first step only, and its cache has the outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanlab.errors import ProblemError
from scanlab.integrations.causal_conv1d.causal_conv1d_interface import causal_conv1d_update


class RotaryEmbedding(nn.Module):
    """Rotary position embedding of the first `dim` channels of each head.

    Args:
        dim: Channels that are rotated; even.
        base: Ratio of the longest to the shortest period, nearly.
        interleaved: Rotate channels 2 i and 2 i + 1 together, instead of i and i + dim / 2.
        device: Device of the frequencies.
    """

    inv_freq: Tensor

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        interleaved: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.interleaved = interleaved
        inv_freq = base ** -(torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, x: Tensor, offset: int) -> Tensor:
        """Return x (batch, length, heads, head_dim), whose first step stands at position `offset`, rotated."""
        positions = torch.arange(offset, offset + x.shape[1], device=x.device, dtype=torch.float32)
        angles = torch.outer(positions, self.inv_freq.float())[:, None]  # (length, 1, dim / 2)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        rotated, rest = x.split([self.dim, x.shape[-1] - self.dim], dim=-1)
        if self.interleaved:
            first, second = rotated.unflatten(-1, (-1, 2)).unbind(-1)
        else:
            first, second = rotated.chunk(2, dim=-1)
        turned = (first * cos - second * sin, first * sin + second * cos)
        joined = torch.stack(turned, dim=-1).flatten(-2) if self.interleaved else torch.cat(turned, dim=-1)
        return torch.cat((joined, rest), dim=-1)


class MHA(nn.Module):
    """Self-attention: (batch, length, embed_dim) -> the same.

    Args:
        embed_dim: Width of the input and of the output.
        num_heads: Heads of the queries.
        num_heads_kv: Heads of the keys and values, which divide num_heads; num_heads by default.
        head_dim: Width of a head; embed_dim / num_heads by default.
        mlp_dim: Width of a gated MLP beside the heads, gate included, rounded up to a multiple of 256; 0 for none.
        qkv_proj_bias: The input projection has a bias.
        out_proj_bias: The output projection has a bias.
        softmax_scale: Factor of the scores; 1 / sqrt(head_dim) by default.
        causal: A step attends to itself and those before.
        layer_idx: Key of the layer's cache.
        d_conv: Width of a short causal convolution of queries, keys and values; 0 for none.
        rotary_emb_dim: Channels of a head with a rotary position embedding; 0 for none.
        rotary_emb_base: Base of its frequencies.
        rotary_emb_interleaved: Rotate neighbouring channels together.

    Raises:
        ProblemError: num_heads does not fit embed_dim or num_heads_kv.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_heads_kv: int | None = None,
        head_dim: int | None = None,
        mlp_dim: int = 0,
        qkv_proj_bias: bool = True,
        out_proj_bias: bool = True,
        softmax_scale: float | None = None,
        causal: bool = False,
        layer_idx: int | None = None,
        d_conv: int = 0,
        rotary_emb_dim: int = 0,
        rotary_emb_base: float = 10000.0,
        rotary_emb_interleaved: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if head_dim is None and embed_dim % num_heads:
            raise ProblemError(f"num_heads={num_heads} does not divide embed_dim={embed_dim}: give head_dim.")
        self.embed_dim = embed_dim
        self.layer_idx = layer_idx
        self.d_conv = d_conv
        self.rotary_emb_dim = rotary_emb_dim
        self.softmax_scale = softmax_scale
        self.causal = causal
        self.num_heads = num_heads
        self.num_heads_kv = num_heads if num_heads_kv is None else num_heads_kv
        if num_heads % self.num_heads_kv:
            raise ProblemError(f"num_heads_kv={num_heads_kv} does not divide num_heads={num_heads}.")
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.mlp_dim = -(-mlp_dim // 256) * 256
        qkv_dim = self.head_dim * (num_heads + 2 * self.num_heads_kv)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        if rotary_emb_dim > 0:
            self.rotary_emb = RotaryEmbedding(rotary_emb_dim, rotary_emb_base, rotary_emb_interleaved, device)
        self.in_proj = nn.Linear(embed_dim, qkv_dim + self.mlp_dim, bias=qkv_proj_bias, **where)
        if d_conv > 0:
            self.conv1d = nn.Conv1d(qkv_dim, qkv_dim, d_conv, padding=d_conv - 1, groups=qkv_dim, **where)
        self.out_proj = nn.Linear(self.head_dim * num_heads + self.mlp_dim // 2, embed_dim, bias=out_proj_bias, **where)

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return an empty cache.

        Returns:
            Keys and values (batch, max_seqlen, 2, num_heads_kv, head_dim), and the last inputs of the convolution
            (batch, channels, d_conv), None without one.
        """
        weight = self.out_proj.weight
        kv = weight.new_zeros((batch_size, max_seqlen, 2, self.num_heads_kv, self.head_dim), dtype=dtype)
        if self.d_conv == 0:
            return kv, None
        return kv, weight.new_zeros((batch_size, self.conv1d.weight.shape[0], self.d_conv), dtype=dtype)

    def forward(self, x: Tensor, inference_params: Any = None) -> Tensor:
        """Return the output for x (batch, length, embed_dim); inference_params is the cache of a generation.

        Raises:
            ProblemError: The cache does not fit: it is shorter than the sequence, has a length for each sample, or
                the layer has no layer_idx.
        """
        cache, offset = self._cache(x, inference_params)
        qkv, mlp = self.in_proj(x).split(
            [self.head_dim * (self.num_heads + 2 * self.num_heads_kv), self.mlp_dim], dim=-1
        )
        if self.d_conv > 0:
            qkv = self._convolved(qkv, None if cache is None else cache[1], offset)
        heads = qkv.unflatten(-1, (-1, self.head_dim))
        q, k, v = heads.split([self.num_heads, self.num_heads_kv, self.num_heads_kv], dim=2)
        if self.rotary_emb_dim > 0:
            q, k = self.rotary_emb(q, offset), self.rotary_emb(k, offset)
        if cache is not None:
            end = offset + x.shape[1]
            cache[0][: len(x), offset:end] = torch.stack((k, v), dim=2)
            k, v = cache[0][: len(x), :end].to(q.dtype).unbind(2)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=self._mask(q.shape[1], offset, q.device),
            is_causal=self.causal and offset == 0,
            scale=self.softmax_scale,
            enable_gqa=self.num_heads != self.num_heads_kv,
        )
        out = out.transpose(1, 2).flatten(2)
        if self.mlp_dim > 0:
            values, gate = mlp.chunk(2, dim=-1)
            out = torch.cat((out, values * F.silu(gate)), dim=-1)
        projected: Tensor = self.out_proj(out)
        return projected

    def _cache(self, x: Tensor, inference_params: Any) -> tuple[tuple[Tensor, Tensor | None] | None, int]:
        """Return this layer's cache and the number of steps before x."""
        if inference_params is None:
            return None, 0
        if self.layer_idx is None:
            raise ProblemError("inference_params are given, and layer_idx is None: give MHA its layer_idx.")
        if inference_params.lengths_per_sample is not None:
            raise ProblemError("inference_params.lengths_per_sample is given: must be None; samples have one length.")
        offset: int = inference_params.seqlen_offset
        memory = inference_params.key_value_memory_dict
        if self.layer_idx not in memory:
            memory[self.layer_idx] = self.allocate_inference_cache(len(x), inference_params.max_seqlen, dtype=x.dtype)
        kv, conv_state = memory[self.layer_idx]
        if offset + x.shape[1] > kv.shape[1] or len(x) > len(kv):
            raise ProblemError(
                f"{len(x)} sequences of {offset + x.shape[1]} steps: the cache has room for {len(kv)} of {kv.shape[1]}."
            )
        return (kv, conv_state), offset

    def _convolved(self, qkv: Tensor, conv_state: Tensor | None, offset: int) -> Tensor:
        """Return the causal convolution of qkv (batch, length, channels); conv_state is read and updated."""
        if conv_state is None or offset == 0:
            if conv_state is not None:
                conv_state.copy_(F.pad(qkv.mT, (self.d_conv - qkv.shape[1], 0)))
            convolved: Tensor = self.conv1d(qkv.mT)[..., : qkv.shape[1]].mT
            return convolved
        return causal_conv1d_update(qkv.mT, conv_state, self.conv1d.weight[:, 0], self.conv1d.bias).mT

    def _mask(self, length: int, offset: int, device: torch.device) -> Tensor | None:
        """Return which keys a query attends to, (length, offset + length), where some steps are cached."""
        if not self.causal or offset == 0 or length == 1:
            return None
        return torch.ones(length, offset + length, dtype=torch.bool, device=device).tril(offset)
