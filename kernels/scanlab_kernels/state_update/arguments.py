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

from torch import Tensor

from scanlab.errors import ProblemError
from scanlab_kernels.checks import expect, expect_int32


def check(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state_batch_indices: Tensor | None,
) -> None:
    """Raise ProblemError unless these pose a step of the scan."""
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
