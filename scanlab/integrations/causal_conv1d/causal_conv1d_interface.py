"""Functions of `causal_conv1d`, with its signatures, on the ops of scanlab.runtime.ops.

Source: Dao-AILab/causal-conv1d@0d2252d, causal_conv1d/causal_conv1d_interface.py, causal_conv1d_varlen.py,
cpp_functions.py.
"""

from __future__ import annotations

from torch import Tensor

from scanlab.runtime import ops as mixer
from scanlab_kernels.causal_conv1d.arguments import Activation
from scanlab_kernels.checks import expect_place


def activation_of(name: str | None) -> Activation:
    """Return `name` as an activation.

    Raises:
        NotImplementedError: It is another than None, silu and swish, as upstream.
    """
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
    """Return the depthwise causal convolution of x (batch, dim, length) with weight (dim, width) and bias (dim,).

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
    final = mixer.final_states(x, weight.shape[1], initial_states, seq_idx)
    if final_states_out is None:
        return out, final
    expect_place("final_states_out", final_states_out, tuple(final.shape), final.dtype, final.device)
    return out, final_states_out.copy_(final)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """Return the next steps, of x (batch, dim[, steps]), from conv_state (batch, dim, slots), updated in place."""
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
    """Return `causal_conv1d_fn` in plain PyTorch; without seq_idx, as upstream."""
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
    """Return `causal_conv1d_update` in plain PyTorch."""
    with mixer.in_torch():
        return causal_conv1d_update(x, conv_state, weight, bias, activation, cache_seqlens)


class CausalConv1dFn:
    """Upstream's autograd function by its name: `apply` is `causal_conv1d_fn`."""

    apply = staticmethod(causal_conv1d_fn)
