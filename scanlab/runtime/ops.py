"""The ops around the scan in a Mamba block, each served by the backend that was decided for its problem.

The problem of an op and its float64 reference are in `scanlab_kernels/<op>/op.py`. Compiled code, tensors without data
and other devices than CPUs and GPUs are served by the implementation of their device, see `implementations`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from scanlab.contract.backend import OpFn
from scanlab.contract.base import Problem
from scanlab.runtime import usage
from scanlab.runtime.dispatch import serving_now
from scanlab.runtime.dispatcher import call_logged, describer
from scanlab.runtime.implementations import implementation, in_torch, is_in_torch, ops_for
from scanlab.runtime.products import linear, plan_linear
from scanlab.runtime.traced import is_traced
from scanlab_kernels.add_norm import arguments as add_norm_arguments
from scanlab_kernels.add_norm.op import AddNormInputs, AddNormProblem
from scanlab_kernels.causal_conv1d import arguments as conv_arguments
from scanlab_kernels.causal_conv1d.arguments import Activation, final_states
from scanlab_kernels.causal_conv1d.op import ConvInputs, ConvProblem
from scanlab_kernels.linear.weights import PrepackedWeight
from scanlab_kernels.mamba_front.weights import DirectionWeights, FrontWeights, InProjection
from scanlab_kernels.state_update import arguments as update_arguments
from scanlab_kernels.state_update import mixer_step as step_op
from scanlab_kernels.state_update.op import StateUpdateInputs, StateUpdateOutput, StateUpdateProblem
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
    "convolve",
    "final_states",
    "implementation",
    "in_torch",
    "linear",
    "mixer_step",
    "plan_convolution",
    "plan_linear",
    "selective_state_update",
]


def is_routed(x: Tensor) -> bool:
    """Return whether a decision for the problem that x poses serves, and not the implementation of its device."""
    return (
        not is_traced()
        and type(x) in (Tensor, nn.Parameter)
        and (x.is_cpu or x.is_cuda)
        and x.numel() > 0
        and not is_in_torch()
        and not torch._C._are_functorch_transforms_active()
    )


def _serve(kind: tuple[object, ...], inputs: Any, tensors: tuple[Any, ...], pose: Callable[[bool], Problem]) -> Any:
    """Return the outputs of the function that was decided for such inputs.

    Args:
        kind: Type of the problem, and all it is derived from beside the tensors.
        inputs: Inputs of the op.
        tensors: Tensors among the inputs, None if absent; the first is there.
        pose: (whether a gradient is wanted) -> the problem.
    """
    wanted = torch.is_grad_enabled()

    def problem() -> Problem:
        return pose(wanted and any(each is not None and each.requires_grad for each in tensors))

    look = describer(tensors[0], wanted)
    key = (*kind, wanted, *[each if each is None else look(each) for each in tensors])
    bound = serving_now().bound_to(key, problem)
    return bound.function(inputs) if not usage.active() else call_logged(bound, inputs)


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
    if not is_routed(hidden):
        add_norm_arguments.check(hidden, residual, weight, bias, kind)
        found: tuple[Tensor, Tensor] = ops_for(hidden).add_norm(
            hidden, residual, weight, bias, eps, kind == "layer", residual_in_fp32
        )
        return found
    inputs = AddNormInputs(hidden, residual, weight, bias, eps)

    def pose(gradients: bool) -> AddNormProblem:
        return AddNormProblem.of(inputs, kind=kind, residual_in_fp32=residual_in_fp32, gradients=gradients)

    out, total = _serve((AddNormProblem, kind, residual_in_fp32), inputs, inputs[:4], pose)
    return out, total


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
            order of time; zeros if None.
        activation: "silu" (also called "swish") or None.
        reverse: Convolve against time.

    Returns:
        The shape, dtype and order of strides of x.

    Raises:
        ProblemError: Shapes, dtypes or devices do not fit; nothing was computed.
    """
    if reverse:
        inputs = ConvInputs(x, None, None, weight, bias, seq_idx, initial_states)
    else:
        inputs = ConvInputs(x, weight, bias, None, None, seq_idx, initial_states)
    (out,) = convolve(inputs, activation)
    return out


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
    out, out_reverse = convolve(ConvInputs(x, weight, bias, weight_reverse, bias_reverse), activation)
    return out, out_reverse


def convolve(inputs: ConvInputs, activation: Activation = "silu") -> tuple[Tensor, ...]:
    """Return the convolution of each direction that has a weight; arguments and errors are those of `causal_conv1d`."""
    conv_arguments.check_activation(activation)
    x, silu = inputs.x, activation is not None
    if not is_routed(x):
        conv_arguments.check_inputs(*inputs)
        outs: tuple[Tensor, Tensor] = ops_for(x).causal_conv1d(*inputs, silu)
        given = (inputs.weight, inputs.weight_reverse)
        return tuple(out for out, weight in zip(outs, given, strict=True) if weight is not None)
    dim_last = x.dim() == 3 and x.stride(1) == 1
    outputs: tuple[Tensor, ...] = _serve(
        (ConvProblem, silu, dim_last),
        inputs,
        inputs,
        lambda gradients: ConvProblem.of(inputs, silu=silu, gradients=gradients),
    )
    return outputs


def plan_convolution(hidden: Tensor, weights: FrontWeights) -> OpFn:
    """Return the convolution in a front of inputs like `hidden`, for callers whose tensors stay plain."""
    first = weights.directions[0].conv_weight
    taps = [each for direction in weights.directions for each in (direction.conv_weight, direction.conv_bias)]
    x = hidden.new_empty(*hidden.shape[:2], len(first)).mT
    problem = ConvProblem.of(ConvInputs(x, *taps))
    return serving_now().bound_to(problem, lambda: problem).function


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
        weight: As in `causal_conv1d`.
        bias: As in `causal_conv1d`.
        activation: As in `causal_conv1d`.
        cache_seqlens: (batch,) int32. conv_state is a circular buffer instead, and x is written from this slot
            (modulo slots) on, after the width - 1 slots before it were read.
        conv_state_indices: (batch,) int32, the row of a larger conv_state; a negative index is padding: its output
            is zero and no state is touched. Two sequences of one row are refused (on a GPU, which is not waited for,
            they leave either state in it).

    Returns:
        The shape and dtype of x.

    Raises:
        ProblemError: Shapes, dtypes or devices do not fit; the state was not touched.
        IndexError: An index is beyond the state (on a GPU, which is not waited for, its output is NaN instead).
    """
    conv_arguments.check_update(x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices)
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
        x: (batch, dim) or (batch, heads, dim).
        dt: Like x.
        A: (dim, state) or (heads, dim, state).
        B: (batch, state), or with heads (batch, groups, state).
        C: Like B.
        D: (dim,) or (heads, dim).
        z: Like x.
        dt_bias: Like D.
        dt_softplus: Apply softplus to dt + dt_bias.
        state_batch_indices: (batch,) int32, the row of a larger state; a negative index is padding: its output
            is zero and no state is touched. Two sequences of one row are refused (on a GPU, which is not waited for,
            they leave either state in it).
        log_A: A holds log(-A), as Mamba's parameter A_log does.

    Returns:
        The shape and dtype of x.

    Raises:
        ProblemError: Shapes, dtypes or devices do not fit; the state was not touched.
        IndexError: An index is beyond the state (on a GPU, which is not waited for, its output is NaN instead).
    """
    if not is_routed(x) or not state.numel():
        update_arguments.check(state, x, dt, A, B, C, D, z, dt_bias, state_batch_indices)
        out: Tensor = ops_for(x, state, A).selective_state_update(
            state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices, log_A
        )
        return out
    tensors = (state, x, dt, A, B, C, D, z, dt_bias, state_batch_indices)
    inputs = StateUpdateInputs(*tensors, in_place=True)
    stepped: StateUpdateOutput = _serve(
        (StateUpdateProblem, dt_softplus, log_A),
        inputs,
        tensors,
        lambda _: StateUpdateProblem.of(inputs, dt_softplus=dt_softplus, log_A=log_A),
    )
    return stepped.out


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
        conv_weight: (dim, width).
        conv_bias: (dim,), or None.
        x_weight: (rank + 2 state, dim), dtype of projected.
        dt_weight: (dim, rank), dtype of projected.
        dt_bias: (dim,), or None.
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
