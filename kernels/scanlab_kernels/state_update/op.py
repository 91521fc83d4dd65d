"""One decoding step of the selective scan, from a stored state that is brought up to date in place.

    dt    = softplus(dt + dt_bias)                        # if dt_softplus
    state = state * exp(dt * A) + dt * B * x
    out   = (<C, state> + D * x) * silu(z)                # D and z optional

float32 arithmetic, float64 where x, state or A is: the state is rounded to its own dtype when it is stored, and
`out` is computed from the state before that rounding.

Source: state-spaces/mamba@e9594ce, mamba_ssm/ops/triton/selective_state_update.py; the semantics of the kernel,
and D and dt_bias are really optional.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.errors import ProblemError
from scanlab.runtime.serving import ops_for
from scanlab_kernels.checks import expect, expect_int32


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
    """The output of one time step; `state` becomes the state after it.

    state                (batch, dim, state) or (batch, heads, dim, state), brought up to date in place
    x, dt, z             (batch, dim) or (batch, heads, dim)
    A                    (dim, state) or (heads, dim, state)
    B, C                 (batch, state), or (batch, groups, state) with heads, which each group has a run of
    D, dt_bias           (dim,) or (heads, dim)
    state_batch_indices  (batch,) int32: the row of a larger state, each at most once; a negative index is
                         padding: its output is zero and no state is touched
    log_A                A holds log(-A), as Mamba's parameter A_log does
    Any floating dtypes and strides (of state, not overlapping ones). Returns the shape and dtype of x. Not
    differentiable, as upstream: no graph is recorded.
    Raises ProblemError, before the state is touched, where shapes, dtypes or devices do not fit; IndexError
    where an index is beyond the state (on a GPU, which is not waited for, its output is NaN instead).
    """
    if state.dim() not in (3, 4) or x.dim() != state.dim() - 1 or B.dim() != x.dim():
        raise ProblemError(
            f"state is {tuple(state.shape)}, x {tuple(x.shape)} and B {tuple(B.shape)}: must be (batch, dim, state),"
            " (batch, dim), (batch, state), or with heads and groups (batch, heads, dim, state), (batch, heads, dim),"
            " (batch, groups, state)."
        )
    own, states = tuple(x.shape[1:]), state.shape[-1]
    projection = (x.shape[0], states) if x.dim() == 2 else (x.shape[0], B.shape[1], states)
    expect("state", state, (x.shape[0] if state_batch_indices is None else state.shape[0], *own, states), x)
    expect("x", x, tuple(x.shape), x)
    expect("dt", dt, tuple(x.shape), x)
    expect("A", A, (*own, states), x)
    expect("B", B, projection, x)
    expect("C", C, projection, x)
    if D is not None:
        expect("D", D, own, x)
    if z is not None:
        expect("z", z, tuple(x.shape), x)
    if dt_bias is not None:
        expect("dt_bias", dt_bias, own, x)
    if state_batch_indices is not None:
        expect_int32("state_batch_indices", state_batch_indices, (x.shape[0],), x)
    if x.dim() == 3 and (B.shape[1] == 0 or x.shape[1] % B.shape[1]):
        raise ProblemError(f"{x.shape[1]} heads and {B.shape[1]} groups of B and C: the groups must divide the heads.")
    ops = ops_for(x, state, A)
    if ops is not None:
        out: Tensor = ops.selective_state_update(
            state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices, log_A
        )
        return out
    return selective_state_update_reference(
        state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices, log_A=log_A
    )


@torch.no_grad()
def selective_state_update_reference(
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
    """`selective_state_update` in PyTorch."""
    if state_batch_indices is not None:
        live = state_batch_indices >= 0
        rows = state_batch_indices[live].long()
        picked = state[rows]
        out = torch.zeros_like(x)
        gate = None if z is None else z[live]
        out[live] = selective_state_update_reference(
            picked, x[live], dt[live], A, B[live], C[live], D, gate, dt_bias, dt_softplus, log_A=log_A
        )
        state[rows] = picked
        return out
    compute = torch.float64 if torch.float64 in (x.dtype, state.dtype, A.dtype) else torch.float32
    step, drive = dt.to(compute), x.to(compute)
    if dt_bias is not None:
        step = step + dt_bias.to(compute)
    if dt_softplus:
        step = F.softplus(step)
    wide_B, wide_C = B.to(compute), C.to(compute)
    if x.dim() == 3:
        wide_B, wide_C = (each.repeat_interleave(x.shape[1] // B.shape[1], dim=1) for each in (wide_B, wide_C))
    rates = -torch.exp(A.to(compute)) if log_A else A.to(compute)
    decay = torch.exp(step[..., None] * rates)
    h = state.to(compute) * decay + (step * drive)[..., None] * wide_B[..., None, :]
    y = (h @ wide_C[..., None])[..., 0]
    if D is not None:
        y = y + D.to(compute) * drive
    if z is not None:
        y = y * F.silu(z.to(compute))
    state.copy_(h)
    return y.to(x.dtype)
