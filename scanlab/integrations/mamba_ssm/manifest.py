"""Modules and names of `mamba_ssm`, `causal_conv1d` and related packages, and the place of each in scanlab.

SERVED is what scanlab provides. UNPROVIDED can be imported and raises when it is used: Mamba-3, what surrounds it, what
runs on several machines, and the private functions of upstream's kernels.
"""

from __future__ import annotations

import functools
import importlib
import re
from typing import Any, NoReturn

from scanlab.errors import UnavailableError

HERE = "scanlab.integrations.mamba_ssm"
CONV_HERE = "scanlab.integrations.causal_conv1d"
VMAMBA_HERE = "scanlab.integrations.vmamba"
VERSIONS = {"mamba_ssm": "2.3.2+scanlab", "causal_conv1d": "1.6.1+scanlab"}
PACKAGES = (
    "mamba_ssm",
    "mamba_ssm.ops",
    "mamba_ssm.ops.triton",
    "mamba_ssm.modules",
    "mamba_ssm.models",
    "mamba_ssm.utils",
    "mamba_ssm.distributed",
    "causal_conv1d",
)

# Copies of mamba_ssm have it within another package, by a name that ends so (`fork.mamba_ssm`, `fork.bimamba_ssm`), or
# by another one, of which its ops alone are recognised (`fork.ops.triton.layer_norm`).
COPY = re.compile(r"^(?!scanlab\.)(?:.*\.)?(?:\w*mamba_ssm\.|(?=ops\.(?:triton\.|selective_scan_interface$)))")
# Of a copy (`fork.mamba_ssm.ops.triton.layernorm`), modules below these may be replaced.
REPLACEABLE = ("mamba_ssm.ops.", "mamba_ssm.utils.")

SCAN = (
    *("selective_scan_fn", "selective_scan_ref", "mamba_inner_fn", "mamba_inner_ref"),
    *("mamba_inner_fn_no_out_proj", "bimamba_inner_fn", "bimamba_inner_ref"),
    *("SelectiveScanFn", "MambaInnerFn", "MambaInnerFnNoOutProj", "BiMambaInnerFn"),
)
COMBINED = ("mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined")
SSD = (
    *(*COMBINED, "mamba_chunk_scan", "ssd_selective_scan"),
    *("MambaChunkScanCombinedFn", "MambaSplitConv1dScanCombinedFn"),
)
MINIMAL = ("mamba_chunk_scan_combined", "segsum", "segsum_unstable", "ssd_minimal_discrete")
NORMS = ("layer_norm_fn", "rms_norm_fn", "layer_norm_linear_fn", "RMSNorm", "LayerNormFn", "LayerNormLinearFn")
NORM_MODULE = {
    f"{HERE}.ops.triton.layer_norm": NORMS,
    f"{HERE}.ops.triton.layer_norm_ref": ("layer_norm_ref", "rms_norm_ref"),
}
GATED_NORMS = ("layernorm_fn", "rmsnorm_fn", "rms_norm_ref", "LayerNorm", "RMSNorm", "LayerNormFn")
CHUNKS = f"{HERE}.ops.triton.ssd_chunks"
CHUNK_STATE = ("chunk_state", "chunk_state_ref", "chunk_state_varlen")
STATE_PASSING = ("state_passing", "state_passing_ref")
CHUNK_SCAN = ("chunk_scan", "chunk_scan_ref")
CONV = ("causal_conv1d_fn", "causal_conv1d_update")
COMPILED_CONV = ("causal_conv1d_fwd_function", "causal_conv1d_bwd_function", "causal_conv1d_update_function")
GENERATION = (
    *("InferenceParams", "GenerationMixin", "decode", "sample", "modify_logit_for_repetition_penalty"),
    *(f"modify_logits_for_{kind}_filtering" for kind in ("min_p", "top_k", "top_p")),
)
LANGUAGE_MODEL = (
    *("MambaLMHeadModel", "MixerModel", "create_block", "_init_weights"),
    # imported there, and from there by others
    *("MambaConfig", "Block", "Mamba", "Mamba2", "MHA", "GatedMLP", "RMSNorm", "layer_norm_fn", "GenerationMixin"),
    *("load_config_hf", "load_state_dict_hf"),
)

# module -> {module of scanlab: names}
SERVED: dict[str, dict[str, tuple[str, ...]]] = {
    "mamba_ssm": {
        f"{HERE}.ops.selective_scan_interface": ("selective_scan_fn", "mamba_inner_fn"),
        f"{HERE}.modules.mamba_simple": ("Mamba",),
        f"{HERE}.modules.mamba2": ("Mamba2",),
        f"{HERE}.models.mixer_seq_simple": ("MambaLMHeadModel",),
    },
    "mamba_ssm.ops": {},
    "mamba_ssm.ops.selective_scan_interface": {
        f"{HERE}.ops.selective_scan_interface": (*SCAN, "selective_scan_cuda", "causal_conv1d_cuda"),
        f"{HERE}.ops.triton.layer_norm": ("rms_norm_forward",),
        f"{CONV_HERE}.causal_conv1d_interface": ("causal_conv1d_fn",),
        f"{CONV_HERE}.cpp_functions": COMPILED_CONV,
    },
    "mamba_ssm.ops.triton": {},
    "mamba_ssm.ops.triton.layer_norm": NORM_MODULE,
    "mamba_ssm.ops.triton.layernorm": NORM_MODULE,
    "mamba_ssm.ops.triton.layernorm_gated": {f"{HERE}.ops.triton.layernorm_gated": GATED_NORMS},
    "mamba_ssm.ops.triton.k_activations": {f"{HERE}.ops.triton.k_activations": ("swiglu", "SwiGLU")},
    "mamba_ssm.ops.triton.selective_state_update": {
        f"{HERE}.ops.triton.selective_state_update": ("selective_state_update", "selective_state_update_ref")
    },
    "mamba_ssm.ops.triton.ssd_combined": {
        f"{HERE}.ops.triton.ssd_combined": SSD,
        f"{HERE}.ops.triton.ssd_combined_ref": (
            *("ssd_chunk_scan_combined_ref", "mamba_conv1d_scan_ref", "mamba_split_conv1d_scan_ref"),
        ),
        CHUNKS: (*CHUNK_STATE, *STATE_PASSING, *CHUNK_SCAN),
        f"{HERE}.ops.triton.layernorm_gated": ("rmsnorm_fn",),
        f"{CONV_HERE}.causal_conv1d_interface": ("causal_conv1d_fn",),
    },
    "mamba_ssm.ops.triton.ssd_chunk_state": {CHUNKS: CHUNK_STATE},
    "mamba_ssm.ops.triton.ssd_state_passing": {CHUNKS: STATE_PASSING},
    "mamba_ssm.ops.triton.ssd_chunk_scan": {CHUNKS: CHUNK_SCAN},
    "mamba_ssm.modules": {},
    "mamba_ssm.modules.mamba_simple": {
        f"{HERE}.modules.mamba_simple": ("Mamba", "Block"),
        f"{HERE}.ops.triton.layer_norm": ("RMSNorm", "layer_norm_fn", "rms_norm_fn"),
        f"{HERE}.ops.selective_scan_interface": ("selective_scan_fn", "mamba_inner_fn"),
        f"{HERE}.ops.triton.selective_state_update": ("selective_state_update",),
        f"{CONV_HERE}.causal_conv1d_interface": CONV,
    },
    "mamba_ssm.modules.mamba2": {
        f"{HERE}.modules.mamba2": ("Mamba2", "RMSNormGated"),
        f"{HERE}.ops.triton.ssd_combined": COMBINED,
        f"{HERE}.ops.triton.selective_state_update": ("selective_state_update",),
        f"{CONV_HERE}.causal_conv1d_interface": CONV,
    },
    "mamba_ssm.modules.mamba2_simple": {
        f"{HERE}.modules.mamba2_simple": ("Mamba2Simple",),
        f"{HERE}.modules.mamba2": ("RMSNormGated",),
        f"{HERE}.ops.triton.ssd_combined": COMBINED,
        f"{CONV_HERE}.causal_conv1d_interface": ("causal_conv1d_fn",),
    },
    "mamba_ssm.modules.mha": {f"{HERE}.modules.mha": ("MHA",)},
    "mamba_ssm.modules.ssd_minimal": {f"{HERE}.modules.ssd_minimal": MINIMAL},
    "mamba_ssm.modules.block": {
        f"{HERE}.modules.block": ("Block",),
        f"{HERE}.ops.triton.layer_norm": ("RMSNorm", "layer_norm_fn"),
    },
    "mamba_ssm.modules.mlp": {f"{HERE}.modules.mlp": ("GatedMLP",)},
    "mamba_ssm.models": {},
    "mamba_ssm.models.config_mamba": {f"{HERE}.models.config_mamba": ("MambaConfig",)},
    "mamba_ssm.models.mixer_seq_simple": {f"{HERE}.models.mixer_seq_simple": LANGUAGE_MODEL},
    "mamba_ssm.utils": {},
    "mamba_ssm.distributed": {},
    "mamba_ssm.utils.torch": {f"{HERE}.utils.torch": ("custom_fwd", "custom_bwd", "custom_amp_decorator")},
    "mamba_ssm.utils.determinism": {f"{HERE}.utils.determinism": ("use_deterministic_mode", "set_deterministic_mode")},
    "mamba_ssm.utils.generation": {f"{HERE}.utils.generation": GENERATION},
    "mamba_ssm.utils.hf": {f"{HERE}.utils.hf": ("load_config_hf", "load_state_dict_hf")},
    "causal_conv1d": {f"{CONV_HERE}.causal_conv1d_interface": CONV},
    "causal_conv1d.causal_conv1d_interface": {
        f"{CONV_HERE}.causal_conv1d_interface": (
            *(*CONV, "CausalConv1dFn", "causal_conv1d_ref", "causal_conv1d_update_ref"),
        ),
        f"{CONV_HERE}.cpp_functions": COMPILED_CONV,
    },
    "causal_conv1d.causal_conv1d_varlen": {
        f"{CONV_HERE}.causal_conv1d_varlen": ("causal_conv1d_varlen_states", "causal_conv1d_varlen_states_ref")
    },
    "causal_conv1d.cpp_functions": {f"{CONV_HERE}.cpp_functions": COMPILED_CONV},
    "selective_scan_cuda": {f"{HERE}.cuda_extensions": ("fwd", "bwd")},
    "causal_conv1d_cuda": {
        f"{HERE}.cuda_extensions": ("causal_conv1d_fwd", "causal_conv1d_bwd", "causal_conv1d_update")
    },
    "selective_scan_cuda_core": {f"{VMAMBA_HERE}.selective_scan_cuda_core": ("fwd", "bwd")},
    "selective_scan_cuda_nrow": {f"{VMAMBA_HERE}.selective_scan_cuda_core": ("fwd", "bwd")},
    "selective_scan_cuda_oflex": {f"{VMAMBA_HERE}.selective_scan_cuda_oflex": ("fwd", "bwd")},
    "selective_scan_cuda_ndstate": {f"{VMAMBA_HERE}.selective_scan_cuda_ndstate": ("fwd", "bwd")},
    "selective_scan": {VMAMBA_HERE: ("selective_scan_fn", "selective_scan_ref")},
    "selective_scan_vmamba": {VMAMBA_HERE: ("selective_scan_fn", "selective_scan_cuda_core")},
    "selective_scan_vmamba_pt202": {VMAMBA_HERE: ("selective_scan_fn", "selective_scan_cuda_core")},
}

# Served where they are absent and never wrapped: files of other projects have these names, with other signatures.
# The official ones call compiled modules, which are wrapped.
UNWRAPPED = {"selective_scan", "selective_scan_vmamba", "selective_scan_vmamba_pt202"}

NEWER = "scanlab has Mamba-1 and Mamba-2; for this one install mamba_ssm, on a machine with CUDA"
KERNELS = "it is a part of upstream's kernels; call mamba_chunk_scan_combined or the public functions of the steps"
GRAPHS = "captured graphs are a matter of GPUs; decode without them"
MACHINES = "scanlab runs on one machine; for several install mamba_ssm"

# (module, alternative, names)
UNPROVIDED = (
    ("mamba_ssm", NEWER, ("Mamba3",)),
    ("mamba_ssm.ops.triton.ssd_chunk_state", KERNELS, ("ChunkStateFn",)),
    ("mamba_ssm.ops.triton.ssd_chunk_scan", KERNELS, ("ChunkScanFn",)),
    ("mamba_ssm.ops.triton.ssd_state_passing", KERNELS, ("StatePassingFn",)),
    ("mamba_ssm.ops.triton.ssd_bmm", KERNELS, ()),
    ("mamba_ssm.ops.triton.softplus", KERNELS, ("softplus",)),
    ("mamba_ssm.modules.mamba3", NEWER, ("Mamba3",)),
    ("mamba_ssm.utils.generation", GRAPHS, ("DecodingCGCache", "update_graph_cache", "capture_graph")),
    (
        "mamba_ssm.distributed.distributed_utils",
        MACHINES,
        (
            *("all_gather", "all_reduce", "reduce_scatter", "all_gather_raw", "all_reduce_raw", "reduce_scatter_raw"),
            *("sync_shared_params", "allreduce_sequence_parallel_grad", "get_dim_for_local_rank"),
        ),
    ),
    (
        "mamba_ssm.distributed.tensor_parallel",
        MACHINES,
        (
            *("ColumnParallelLinear", "RowParallelLinear", "ParallelLinearFunc", "parallel_linear_func"),
            *("VocabParallelEmbedding", "ColumnParallelEmbedding", "ParallelEmbeddings"),
        ),
    ),
)

MODULES = SERVED.keys() | {module for module, _, _ in UNPROVIDED}


def official_name(module: str) -> str:
    """Return the name of the module of mamba_ssm that `module` is a copy of, and the name of any other as it is."""
    return COPY.sub("mamba_ssm.", module, count=1)


def served(module: str) -> dict[str, Any]:
    """Return scanlab's replacements of the names of `module`."""
    return {
        name: getattr(importlib.import_module(home), name)
        for home, names in SERVED.get(module, {}).items()
        for name in names
    }


def alternative(module: str, name: str) -> str | None:
    """Return what to do without `name` of `module`, where that is known not to be provided.

    Private names of modules of kernels (`_layer_norm_fwd`) are among them: code that has functions of its own beside
    the public ones imports such names.
    """
    for home, cure, names in UNPROVIDED:
        if home == module and name in names:
            return cure
    is_private_kernel = module.startswith("mamba_ssm.ops.triton.") and re.match(r"_[^_]", name)
    return KERNELS if is_private_kernel else None


@functools.cache
def placeholder(module: str, name: str, cure: str) -> type:
    """Return what stands for a name that is not provided: it raises when it is called, or made an instance of."""

    def refuse(cls: type, *args: object, **kwargs: object) -> NoReturn:
        raise UnavailableError(f"{module}.{name} is not provided by scanlab, which stands in for {module}: {cure}.")

    return type(name, (), {"__module__": module, "__new__": refuse})
