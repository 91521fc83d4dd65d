"""One token through a Mamba mixer, its projections in and out excepted, with both states updated in place.

    x, z     = projected
    u        = silu(convolution of the steps in the state and x)
    dt, B, C = x_weight u,  dt = dt_weight dt
    y        = one step of the selective scan of u, with dt_bias, softplus and the gate z

One op, because three calls from Python take longer than their computation.

Source: state-spaces/mamba@e9594ce, mamba_ssm/modules/mamba_simple.py, Mamba.step.
"""

from __future__ import annotations

from torch import Tensor

from scanlab.errors import ProblemError
from scanlab_kernels.causal_conv1d.arguments import check as check_convolution
from scanlab_kernels.checks import expect


def check(
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
) -> None:
    """Raise ProblemError unless these pose a step of a mixer."""
    if projected.dim() != 2 or A_log.dim() != 2 or dt_weight.dim() != 2:
        raise ProblemError(
            f"projected is {tuple(projected.shape)}, A_log {tuple(A_log.shape)} and dt_weight {tuple(dt_weight.shape)}:"
            " must be (batch, 2 dim), (dim, state) and (dim, rank)."
        )
    batch, (dim, states), rank = len(projected), A_log.shape, dt_weight.shape[1]
    expect("projected", projected, (batch, 2 * dim), projected)
    check_convolution(projected[:, :dim, None], conv_weight, conv_bias)
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
