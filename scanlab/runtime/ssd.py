"""State-space duality (Mamba-2) by the machine's choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

from scanlab.errors import ProblemError
from scanlab.runtime import dispatch, traced_ssd
from scanlab.runtime.empty_scan import ssd_empty
from scanlab.runtime.ops import selective_state_update
from scanlab.runtime.promotion import promoted
from scanlab.runtime.traced import is_traced
from scanlab_kernels.checks import expect
from scanlab_kernels.ssd.problem import NO_LIMIT, Limits, SsdInputs, SsdOutput, SsdProblem

VARYING = ("x", "B", "C", "z")


def ssd(inputs: SsdInputs, *, dt_softplus: bool = False, dt_limit: Limits = NO_LIMIT) -> SsdOutput:
    """Return the outputs and the final state of Mamba-2's scan; shapes in `scanlab_kernels.ssd.problem`.

    Mixtures of dtypes are promoted exactly: x, B, C and z to the widest of theirs, all others to the float32 or float64
    that goes with it. Differentiable in every tensor, final_state included.

    Args:
        inputs: The tensors.
        dt_softplus: Apply softplus to dt + dt_bias.
        dt_limit: The lowest and the highest step size.

    Raises:
        ProblemError: The tensors do not fit together.
        UnavailableError: No backend serves the problem.
    """
    asked = promoted(inputs, VARYING, indices=("seq_idx",))
    serve = traced_ssd.ssd if is_traced() or inputs.x.is_meta else _serve
    out, final_state = serve(asked, dt_softplus, dt_limit)
    return SsdOutput(out.to(inputs.x.dtype), final_state)


def _serve(inputs: SsdInputs, dt_softplus: bool, dt_limit: Limits) -> SsdOutput:
    if not inputs.x.numel():
        return ssd_empty(inputs)
    gradients = torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in inputs)
    problem = SsdProblem.of(inputs, dt_softplus=dt_softplus, dt_limit=dt_limit, gradients=gradients)
    output: SsdOutput = dispatch.serving_now().run(problem, inputs)
    return output


def ssd_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A_log: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = True,
) -> Tensor:
    """Return the output of one time step of Mamba-2's scan; `state` becomes the state after it.

    Not differentiable: no graph is recorded.

    Args:
        state: (batch, heads, head_dim, state), updated in place.
        x: (batch, heads, head_dim).
        dt: (batch, heads).
        A_log: (heads,), log(-A).
        B: (batch, groups, state).
        C: (batch, groups, state).
        D: (heads,) or (heads, head_dim).
        z: (batch, heads, head_dim).
        dt_bias: (heads,).
        dt_softplus: Apply softplus to dt + dt_bias.

    Returns:
        The shape and dtype of x.

    Raises:
        ProblemError: The tensors do not fit together; the state was not touched.
    """
    by_channel = tuple(x.shape[1:])
    if x.dim() != 3 or state.dim() != 4:
        raise ProblemError(
            f"x is {tuple(x.shape)}, state is {tuple(state.shape)}: must be (batch, heads, head_dim) and"
            " (batch, heads, head_dim, state)."
        )
    heads = by_channel[:1]
    expect("dt", dt, tuple(x.shape[:2]), x)
    expect("A_log", A_log, heads, x)
    expect("D", D, by_channel if D.dim() == 2 else heads, x)
    if dt_bias is not None:
        expect("dt_bias", dt_bias, heads, x)
    return selective_state_update(
        state,
        x,
        dt[..., None].expand(x.shape),
        A_log[:, None, None].expand(state.shape[1:]),
        B,
        C,
        D if D.dim() == 2 else D[:, None].expand(by_channel),
        z,
        None if dt_bias is None else dt_bias[:, None].expand(by_channel),
        dt_softplus=dt_softplus,
        log_A=True,
    )


traced_ssd.register(_serve)
