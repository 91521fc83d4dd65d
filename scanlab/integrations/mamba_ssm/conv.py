"""The functions of `causal_conv1d`, with its signatures, on the ops of scanlab.runtime.ops.

Source: Dao-AILab/causal-conv1d@0d2252d, causal_conv1d/causal_conv1d_interface.py, causal_conv1d_varlen.py,
cpp_functions.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scanlab.integrations.mamba_ssm import cuda_extensions as extensions
from scanlab.runtime import ops as mixer
from scanlab_kernels.causal_conv1d.op import Activation


def activation_of(name: str | None) -> Activation:
    """`name` as an activation; raises NotImplementedError, as upstream, for another than None, silu and swish."""
    if name not in (None, "silu", "swish"):
        raise NotImplementedError(f"activation={name!r}: must be None, 'silu' or 'swish'.")
    return None if name is None else "silu"


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | str | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The depthwise causal convolution of x (batch, dim, length) with weight (dim, width) and bias (dim,).

    seq_idx (batch, length) int32; initial_states and final_states_out (batch, dim, width - 1). Returns the shape
    and dtype of x, with the final states where asked for. Differentiable. Without the layout and width limits of
    the CUDA kernel. Raises ProblemError where shapes or dtypes do not fit, NotImplementedError for an activation.
    """
    if isinstance(seq_idx, str):  # causal_conv1d 1.0 had the activation in this place, and old code still puts it there
        seq_idx, activation = None, seq_idx
    out = mixer.causal_conv1d(
        x, weight, bias, seq_idx=seq_idx, initial_states=initial_states, activation=activation_of(activation)
    )
    if not return_final_states:
        return out
    final = mixer.final_states(x, weight.shape[1], initial_states)
    return out, final if final_states_out is None else final_states_out.copy_(final)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """The next steps x (batch, dim) or (batch, dim, steps) from conv_state (batch, dim, slots), updated in place."""
    return mixer.causal_conv1d_update(
        x,
        conv_state,
        weight,
        bias,
        activation=activation_of(activation),
        cache_seqlens=cache_seqlens,
        conv_state_indices=conv_state_indices,
    )


def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`causal_conv1d_fn` in plain PyTorch; without seq_idx, as upstream."""
    with mixer.in_torch():
        return causal_conv1d_fn(
            x, weight, bias, None, initial_states, return_final_states, final_states_out, activation
        )


def causal_conv1d_update_ref(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
) -> Tensor:
    """`causal_conv1d_update` in plain PyTorch."""
    with mixer.in_torch():
        return causal_conv1d_update(x, conv_state, weight, bias, activation, cache_seqlens)


@torch.no_grad()
def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The last `state_len` inputs of each packed sequence: x (tokens, dim) -> (batch, dim, state_len).

    Shorter sequences get zeros on the left. Sequence i is x[cu_seqlens[i] : cu_seqlens[i + 1]].
    """
    bounds = cu_seqlens.tolist()
    states = x.new_zeros(len(bounds) - 1, state_len, x.shape[1])
    for state, begin, end in zip(states, bounds, bounds[1:], strict=False):
        last = x[max(begin, end - state_len) : end]
        state[state_len - len(last) :] = last
    return states.mT


causal_conv1d_varlen_states_ref = causal_conv1d_varlen_states


def causal_conv1d_fwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    final_states_out: Tensor | None,
    silu_activation: bool,
) -> Tensor:
    """The forward pass as `causal_conv1d.cpp_functions` has it."""
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
    """The gradients (dx, dweight, dbias, dinitial_states) as `causal_conv1d.cpp_functions` has them."""
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
    """The next steps as `causal_conv1d.cpp_functions` has them."""
    activation = "silu" if silu_activation else None
    return causal_conv1d_update(x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices)
