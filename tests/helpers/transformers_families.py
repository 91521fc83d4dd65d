"""Small random models of every family in transformers that has a state-space or causal-convolution layer.

All experts are chosen in each mixture, so that rounding cannot change which ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

COMMON = {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 32}
TWO_LAYERS = {"num_hidden_layers": 2}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 40}
LATENT_ATTENTION = {
    **{"num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 40, "kv_lora_rank": 8},
    **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
}
SLIDING_ATTENTION = {
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "d_rel": 4, "rel_extent": 16},
    **{"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8},
}
MAMBA1 = {"mamba_d_state": 8, "mamba_dt_rank": 5, "attn_layer_period": 2, "attn_layer_offset": 1}
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}
DELTA_RULE = {
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
    "head_dim": 8,
}
KIMI_DELTA = {"linear_head_dim": 8, "linear_num_heads": 4}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL_EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
ROUTED_EXPERTS = {"n_routed_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHARED_EXPERT = {"shared_expert_intermediate_size": 24}
DENSE_THEN_SPARSE = {"mlp_layer_types": ["dense", "sparse"]}


def _layers(*types: str) -> dict[str, Any]:
    return {"layer_types": list(types)}


LINEAR_THEN_FULL = _layers("linear_attention", "full_attention")
CONV_THEN_FULL = _layers("conv", "full_attention")
EXPERTS_IN_JAMBA = {"num_experts": 2, "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 1}

# family -> options beside COMMON; what follows the first word of a name is a variant of that family
FAMILIES: dict[str, dict[str, Any]] = {
    "Mamba": TWO_LAYERS | {"state_size": 8},
    "FalconMamba": TWO_LAYERS | {"state_size": 8},
    "Jamba": TWO_LAYERS | ATTENTION | MAMBA1 | EXPERTS_IN_JAMBA,
    "Zamba": ATTENTION
    | MAMBA1
    | {"num_hidden_layers": 6, "num_key_value_heads": 4, "attention_hidden_size": 64, "attention_head_dim": 16},
    "Mamba2": TWO_LAYERS | {"state_size": 8, "num_heads": 4, "head_dim": 16, "chunk_size": 8, "n_groups": 2},
    "Bamba": TWO_LAYERS | ATTENTION | MAMBA2 | {"attn_layer_indices": [1]},
    "FalconH1": TWO_LAYERS | ATTENTION | MAMBA2 | {"mamba_d_ssm": 64},
    "GraniteMoeHybrid": TWO_LAYERS
    | ATTENTION
    | MAMBA2
    | LINEAR_THEN_FULL
    | LOCAL_EXPERTS
    | {"shared_intermediate_size": 24},
    "NemotronH": ATTENTION
    | {"layers_block_type": ["linear_attention", "full_attention"], "head_dim": 8, "ssm_state_size": 8}
    | {"mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2, "chunk_size": 8},
    "Zamba2": TWO_LAYERS
    | ATTENTION
    | {"layers_block_type": ["linear_attention", "hybrid"], "num_key_value_heads": 4, "adapter_rank": 4}
    | {"mamba_d_state": 8, "n_mamba_heads": 4, "chunk_size": 8},
    "Lfm2": TWO_LAYERS | ATTENTION | CONV_THEN_FULL | {"block_multiple_of": 8},
    "Lfm2Moe": TWO_LAYERS | ATTENTION | CONV_THEN_FULL | EXPERTS | {"num_dense_layers": 1},
    "Lfm3": TWO_LAYERS | ATTENTION | CONV_THEN_FULL | {"head_dim": 8},
    "Qwen3Next": TWO_LAYERS | ATTENTION | DELTA_RULE | LINEAR_THEN_FULL | EXPERTS | SHARED_EXPERT,
    "Qwen3_5": TWO_LAYERS | ATTENTION | DELTA_RULE | LINEAR_THEN_FULL,
    "Qwen3_5Moe": TWO_LAYERS | ATTENTION | DELTA_RULE | LINEAR_THEN_FULL | EXPERTS | SHARED_EXPERT,
    "Qwen4Exp": TWO_LAYERS
    | ATTENTION
    | DELTA_RULE
    | _layers("linear_attention", "indexed_attention")
    | EXPERTS
    | SHARED_EXPERT
    | {"hc_count": 2, "hc_lowrank": 8, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8}
    | {"indexer_budget": 16, "indexer_compress_ratio": 4},
    "OlmoHybrid": TWO_LAYERS | ATTENTION | DELTA_RULE | LINEAR_THEN_FULL,
    "KimiLinear": TWO_LAYERS | LATENT_ATTENTION | KIMI_DELTA | LINEAR_THEN_FULL | LOCAL_EXPERTS | DENSE_THEN_SPARSE,
    "BailingHybrid": TWO_LAYERS
    | LATENT_ATTENTION
    | LINEAR_THEN_FULL
    | LOCAL_EXPERTS
    | DENSE_THEN_SPARSE
    | {"head_dim": 8, "n_group": 1, "topk_group": 1, "num_mtp_layers": 0},
    "Inkling": TWO_LAYERS | SLIDING_ATTENTION | ROUTED_EXPERTS | DENSE_THEN_SPARSE | {"intermediate_size": 40},
    "Inkling2": TWO_LAYERS | SLIDING_ATTENTION | ROUTED_EXPERTS | {"unpadded_vocab_size": 99},
    "Glm5Next": TWO_LAYERS
    | LATENT_ATTENTION
    | KIMI_DELTA
    | _layers("linear_attention", "indexed_attention")
    | ROUTED_EXPERTS
    | DENSE_THEN_SPARSE
    | {
        "qk_rope_head_dim": 0,
        "q_lora_rank": 8,
        "index_topk": 16,
        "index_head_dim": 8,
        "index_n_heads": 2,
        "hc_mult": 2,
    },
}
GELU = {"hidden_act": "gelu"}
VARIANTS: dict[str, dict[str, Any]] = {
    "Mamba with gelu": GELU,
    "FalconMamba with gelu": GELU,
    "Jamba with gelu": GELU,
    "Zamba with gelu": {"hidden_mamba_act": "gelu"},
    "Mamba2 with gelu": GELU,
    "Bamba with gelu": GELU,
    "Qwen3Next with gelu": GELU,
    "Mamba with a wider convolution": {"conv_kernel": 5},
    "Mamba2 with a wider convolution": {"conv_kernel": 5},
    "Mamba with other biases": {"use_bias": True, "use_conv_bias": False},
    "Mamba2 with other biases": {"use_bias": True, "use_conv_bias": False},
    "Mamba2 with limited steps": {"time_step_limit": (0.1, 0.5)},
    "Lfm2 with biases": {"conv_bias": True},
}
FAMILIES |= {name: FAMILIES[name.split()[0]] | options for name, options in VARIANTS.items()}


def small(family: str) -> Any:
    """A model in evaluation mode whose every parameter is random: zeros and ones hide what is left out."""
    import transformers

    name = family.split()[0]
    torch.manual_seed(0)
    config_class = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config")
    model_class = getattr(transformers, f"{name}ForCausalLM", None) or getattr(transformers, f"{name}TextModel")
    model = model_class(config_class(**COMMON | FAMILIES[family])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def prompt(padded: bool) -> dict[str, Tensor]:
    """Three prompts, of which two are padded on the left where `padded`."""
    ids = torch.randint(3, 99, (3, 13), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :4] = mask[2, :9] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}
