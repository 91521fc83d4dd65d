"""One token through a whole Mamba mixer but its projections in and out, from states brought up to date in place.

    x, z     = projected
    u        = silu(the convolution of x and what came before it)
    dt, B, C = x_weight u,  dt = dt_weight dt
    y        = one step of the selective scan of u, with dt_bias, softplus and the gate z

The ops of its neighbours in a row. Called one by one from Python they cost more than what they compute, above all
when the weights of the layer before have driven their code out of the caches.

Source: state-spaces/mamba@e9594ce, mamba_ssm/modules/mamba_simple.py, Mamba.step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.errors import ProblemError
from scanlab.runtime.serving import ops_for
from scanlab_kernels.causal_conv1d.op import causal_conv1d_update_reference, check
from scanlab_kernels.checks import expect
from scanlab_kernels.state_update.op import selective_state_update_reference


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
    """What the projection out takes, (batch, dim) in the dtype of `projected`.

    projected               (batch, 2 dim): x, and then z
    conv_state              (batch, dim, slots), dtype of projected, slots >= width - 1; newest last
    state                   (batch, dim, state)
    conv_weight, conv_bias  (dim, width) and (dim,)
    x_weight                (rank + 2 state, dim), dtype of projected
    dt_weight, dt_bias      (dim, rank), dtype of projected, and (dim,)
    A_log, D                (dim, state), log(-A), and (dim,)
    Not differentiable, as its parts: no graph is recorded.
    Raises ProblemError, before a state is touched, where shapes, dtypes or devices do not fit.
    """
    if projected.dim() != 2 or A_log.dim() != 2 or dt_weight.dim() != 2:
        raise ProblemError(
            f"projected is {tuple(projected.shape)}, A_log {tuple(A_log.shape)} and dt_weight {tuple(dt_weight.shape)}:"
            " must be (batch, 2 dim), (dim, state) and (dim, rank)."
        )
    batch, (dim, states), rank = len(projected), A_log.shape, dt_weight.shape[1]
    expect("projected", projected, (batch, 2 * dim), projected)
    check(projected[:, :dim, None], conv_weight, conv_bias, "silu")
    slots = conv_state.shape[-1]
    expect("conv_state", conv_state, (batch, dim, slots), projected)
    if slots < conv_weight.shape[1] - 1:
        raise ProblemError(f"conv_state has {slots} slots: a weight of width {conv_weight.shape[1]} needs more.")
    expect("state", state, (batch, dim, states), projected)
    expect("x_weight", x_weight, (rank + 2 * states, dim), projected)
    expect("dt_weight", dt_weight, (dim, rank), projected)
    expect("A_log", A_log, (dim, states), projected)
    expect("D", D, (dim,), projected)
    if dt_bias is not None:
        expect("dt_bias", dt_bias, (dim,), projected)
    for name, tensor in (("conv_state", conv_state), ("x_weight", x_weight), ("dt_weight", dt_weight)):
        if tensor.dtype != projected.dtype:
            raise ProblemError(f"{name} is {tensor.dtype} and projected {projected.dtype}: must be the same.")
    ops = ops_for(projected, state, A_log)
    if ops is not None:
        out: Tensor = ops.mixer_step(
            projected, conv_state, state, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A_log, D
        )
        return out
    return mixer_step_reference(
        projected, conv_state, state, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A_log, D
    )


@torch.no_grad()
def mixer_step_reference(
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
    """`mixer_step` in PyTorch."""
    return composed(
        partial(causal_conv1d_update_reference, activation="silu"),
        partial(selective_state_update_reference, dt_softplus=True, log_A=True),
        *(projected, conv_state, state, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A_log, D),
    )


def composed(
    conv_update: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
    state_update: Callable[..., Tensor],
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
    """`mixer_step` out of its parts.

    conv_update   (x, conv_state, weight, bias) -> u, with SiLU
    state_update  (state, u, dt, A_log, B, C, D, z, dt_bias) -> y, with softplus
    """
    x, z = projected.chunk(2, dim=1)
    u = conv_update(x, conv_state, conv_weight, conv_bias)
    rank, states = dt_weight.shape[1], A_log.shape[1]
    low_rank, B, C = F.linear(u, x_weight).split([rank, states, states], dim=1)
    return state_update(state, u, F.linear(low_rank, dt_weight), A_log, B, C, D, z, dt_bias)
