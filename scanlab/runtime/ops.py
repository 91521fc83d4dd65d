"""The ops around the scan in a Mamba block, each served by the implementation chosen for its tensors.

The contract of an op (shapes, dtypes, checks) is in `scanlab_kernels/<op>/op.py`, its PyTorch reference in `torch.py`
beside it. The choice is made in `implementations` and, for products, in `products`.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from scanlab.runtime.implementations import implementation, in_torch, ops_for
from scanlab.runtime.products import DTYPES, decide, has_few_rows, linear, plan_linear
from scanlab.runtime.traced import is_traced
from scanlab_kernels.add_norm import arguments as add_norm_op
from scanlab_kernels.causal_conv1d import arguments as conv_op
from scanlab_kernels.causal_conv1d.arguments import Activation, final_states
from scanlab_kernels.checks import expect
from scanlab_kernels.linear.weights import PrepackedWeight, is_plain
from scanlab_kernels.mamba_front import composed as front_composed
from scanlab_kernels.mamba_front import native as native_front
from scanlab_kernels.mamba_front import weights as front_op
from scanlab_kernels.mamba_front.weights import DirectionWeights, Front, FrontWeights, InProjection
from scanlab_kernels.state_update import arguments as update_op
from scanlab_kernels.state_update import mixer_step as step_op
from scanlab_kernels.weight_cache import WeightCache

__all__ = [
    "DirectionWeights",
    "FrontWeights",
    "InProjection",
    "PrepackedWeight",
    "WeightCache",
    "add_norm",
    "causal_conv1d",
    "causal_conv1d_bidirectional",
    "causal_conv1d_update",
    "final_states",
    "has_few_rows",
    "implementation",
    "in_torch",
    "linear",
    "mamba_front",
    "mixer_step",
    "plan_front",
    "plan_linear",
    "selective_state_update",
]


def add_norm(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    kind: Literal["rms", "layer"] = "rms",
    residual_in_fp32: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the normalised sum of hidden and residual, and the sum itself, which is the next residual.

    Differentiable in all tensors.

    Args:
        hidden: (..., dim).
        residual: The shape of hidden, in its dtype or in float32; None adds nothing.
        weight: (dim,), any floating dtype.
        bias: The same, or None.
        eps: Added to the mean square.
        kind: RMSNorm or LayerNorm.
        residual_in_fp32: Return the sum in float32 instead of the dtype of hidden (float64 stays float64).

    Raises:
        ProblemError: Shapes, dtypes or devices do not fit; nothing was computed.
    """
    add_norm_op.check(hidden, residual, weight, bias, kind)
    found: tuple[Tensor, Tensor] = ops_for(hidden).add_norm(
        hidden, residual, weight, bias, eps, kind == "layer", residual_in_fp32
    )
    return found


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    activation: Activation = None,
    reverse: bool = False,
) -> Tensor:
    """Return each channel of x convolved over the time steps up to its own; in reverse, from its own on.

    Differentiable in x, weight, bias and initial_states.

    Args:
        x: (batch, dim, length), any strides; fastest where dim or length is dense.
        weight: (dim, width), any floating dtype, width 1 to 16.
        bias: (dim,), any floating dtype.
        seq_idx: (batch, length) int32, the sequence of each step. Steps of other sequences count as zero; a negative
            index is padding, whose output is zero.
        initial_states: (batch, dim, width - 1), the input before the first step (in reverse: after the last), in
            order of time; zeros where None.
        activation: "silu" (also called "swish") or None.
        reverse: Convolve against time.

    Returns:
        The shape, dtype and order of strides of x.

    Raises:
        ProblemError: Shapes, dtypes or devices do not fit; nothing was computed.
    """
    conv_op.check(x, weight, bias, activation)
    conv_op.check_sequence(x, weight, seq_idx, initial_states)
    weights = (None, None, weight, bias) if reverse else (weight, bias, None, None)
    outs: tuple[Tensor, Tensor] = ops_for(x).causal_conv1d(x, *weights, seq_idx, initial_states, activation is not None)
    return outs[reverse]


def causal_conv1d_bidirectional(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_reverse: Tensor,
    bias_reverse: Tensor | None,
    *,
    activation: Activation = None,
) -> tuple[Tensor, Tensor]:
    """Return x convolved forward and in reverse, each with its weights, in one pass; both in natural order of time.

    Arguments and errors are those of `causal_conv1d`.
    """
    conv_op.check(x, weight, bias, activation)
    expect("weight_reverse", weight_reverse, tuple(weight.shape), x)
    if bias_reverse is not None:
        expect("bias_reverse", bias_reverse, (x.shape[1],), x)
    outs: tuple[Tensor, Tensor] = ops_for(x).causal_conv1d(
        x, weight, bias, weight_reverse, bias_reverse, None, None, activation is not None
    )
    return outs


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Activation = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """Return the next steps of a convolution from a stored state, which is updated in place.

    Not differentiable, as upstream: no graph is recorded.

    Args:
        x: (batch, dim) or (batch, dim, steps).
        conv_state: (batch, dim, slots), dtype of x, slots >= width - 1. It shifts: afterwards it holds the last
            `slots` inputs, newest last.
        weight, bias: As in `causal_conv1d`.
        activation: As in `causal_conv1d`.
        cache_seqlens: (batch,) int32. conv_state is a circular buffer instead, and x is written from this slot
            (modulo slots) on, after the width - 1 slots before it were read.
        conv_state_indices: (batch,) int32, the row of a larger conv_state, each at most once; a negative index is
            padding: its output is zero and no state is touched.

    Returns:
        The shape and dtype of x.

    Raises:
        ProblemError: Shapes, dtypes or devices do not fit; the state was not touched.
        IndexError: An index is beyond the state (on a GPU, which is not waited for, its output is NaN instead).
    """
    conv_op.check_update(x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices)
    out: Tensor = ops_for(x).causal_conv1d_update(
        x, conv_state, weight, bias, cache_seqlens, conv_state_indices, activation is not None
    )
    return out


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
    *,
    log_A: bool = False,
) -> Tensor:
    """Return the output of one time step of the scan; `state` becomes the state after it.

    Any floating dtypes and strides (of state, not overlapping ones). Not differentiable, as upstream: no graph is
    recorded.

    Args:
        state: (batch, dim, state) or (batch, heads, dim, state), updated in place.
        x, dt, z: (batch, dim) or (batch, heads, dim).
        A: (dim, state) or (heads, dim, state).
        B, C: (batch, state), or with heads (batch, groups, state).
        D, dt_bias: (dim,) or (heads, dim).
        dt_softplus: Apply softplus to dt + dt_bias.
        state_batch_indices: (batch,) int32, the row of a larger state, each at most once; a negative index is
            padding: its output is zero and no state is touched.
        log_A: A holds log(-A), as Mamba's parameter A_log does.

    Returns:
        The shape and dtype of x.

    Raises:
        ProblemError: Shapes, dtypes or devices do not fit; the state was not touched.
        IndexError: An index is beyond the state (on a GPU, which is not waited for, its output is NaN instead).
    """
    update_op.check(state, x, dt, A, B, C, D, z, dt_bias, state_batch_indices)
    out: Tensor = ops_for(x, state, A).selective_state_update(
        state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices, log_A
    )
    return out


def mixer_step(
    projected: Tensor,
    conv_state: Tensor,
    state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A_log: Tensor,
    D: Tensor,
) -> Tensor:
    """Return one token after the convolution and the scan of a mixer; both states are updated in place.

    Not differentiable, as its parts: no graph is recorded.

    Args:
        projected: (batch, 2 dim), x and then z.
        conv_state: (batch, dim, slots), dtype of projected, slots >= width - 1; newest last.
        state: (batch, dim, state).
        conv_weight, conv_bias: (dim, width) and (dim,).
        x_weight: (rank + 2 state, dim), dtype of projected.
        dt_weight, dt_bias: (dim, rank), dtype of projected, and (dim,).
        A_log: (dim, state), log(-A).
        D: (dim,).

    Returns:
        (batch, dim) in the dtype of projected: the input of the output projection.

    Raises:
        ProblemError: Shapes, dtypes or devices do not fit; no state was touched.
    """
    weights = (conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A_log, D)
    step_op.check(projected, conv_state, state, *weights)
    out: Tensor = ops_for(projected, state, A_log).mixer_step(projected, conv_state, state, *weights)
    return out


def mamba_front(hidden: Tensor, weights: FrontWeights) -> tuple[Tensor, ...]:
    """Return what the scan of a block takes, in order of time: z, then u, delta, B and C of each direction.

    One native op where no gradient is wanted and native products are this machine's choice; else composed of the
    products and convolutions that serve, which are differentiable.

    Args:
        hidden: (batch, length, model).
        weights: Of the front, with one direction or two.

    Returns:
        z, u and delta (batch, length, dim), B and C (batch, length, state); then u, delta, B and C of the reverse
        direction.

    Raises:
        ProblemError: Shapes, dtypes or devices do not fit; nothing was computed.
    """
    return plan_front(hidden, weights)(hidden)


def plan_front(hidden: Tensor, weights: FrontWeights) -> Front:
    """Return the implementation of `mamba_front` with these weights, for inputs of the kind of `hidden`.

    Raises:
        ProblemError: Shapes, dtypes or devices do not fit.
    """
    front_op.check(hidden, weights)
    if is_fused(hidden, weights):
        return native_front.bind(weights)
    into, directions = weights.into, weights.directions
    packed = [into.weight, *(each for direction in directions for each in (direction.x, direction.dt))]
    others = [into.bias, *(each for direction in directions for each in (direction.conv_weight, direction.conv_bias))]
    product = plan_linear(hidden, *packed) if is_plain(hidden, *others) else linear
    return front_composed.compose(
        front_composed.Parts(product, product, product, ops_for(hidden).causal_conv1d), weights
    )


def is_fused(hidden: Tensor, weights: FrontWeights) -> bool:
    """Return whether one native op serves these."""
    into, directions = weights.into, weights.directions
    read = [into.weight.weight, *(each.weight for direction in directions for each in (direction.x, direction.dt))]
    others = [into.bias, *(each for direction in directions for each in (direction.conv_weight, direction.conv_bias))]
    return (
        not is_traced()
        and not has_few_rows(hidden)
        and hidden.is_cpu
        and implementation() == "native"
        and all(weight.dtype == hidden.dtype for weight in read)
        and is_plain(hidden, *read, *others)
        and hidden.dtype in DTYPES
        and decide(hidden.dtype, few=False).name == "native"
    )
