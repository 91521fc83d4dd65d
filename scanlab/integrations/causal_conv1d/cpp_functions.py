"""Functions of `causal_conv1d.cpp_functions`, which custom autograd functions call.

Source: Dao-AILab/causal-conv1d@0d2252d, causal_conv1d/cpp_functions.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scanlab.integrations.causal_conv1d.causal_conv1d_interface import causal_conv1d_update
from scanlab.integrations.mamba_ssm import cuda_extensions as extensions


def causal_conv1d_fwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    final_states_out: Tensor | None,
    silu_activation: bool,
) -> Tensor:
    """Return the convolution as `causal_conv1d.cpp_functions` has it."""
    out = torch.empty_like(x)
    extensions.causal_conv1d_fwd(x, weight, bias, seq_idx, initial_states, out, final_states_out, silu_activation)
    return out


def causal_conv1d_bwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    dfinal_states: Tensor | None,
    dx: Tensor | None,
    return_dinitial_states: bool,
    silu_activation: bool,
) -> tuple[Tensor | None, ...]:
    """Return the gradients (dx, dweight, dbias, dinitial_states) as `causal_conv1d.cpp_functions` has them."""
    return extensions.conv_gradients(
        x, weight, bias, dout, seq_idx, initial_states, dfinal_states, dx, return_dinitial_states, silu_activation
    )


def causal_conv1d_update_function(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu_activation: bool,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
) -> Tensor:
    """Return the next steps as `causal_conv1d.cpp_functions` has them."""
    activation = "silu" if silu_activation else None
    return causal_conv1d_update(x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices)
