"""The functions of `mamba_ssm.ops.triton.ssd_combined`, with their signatures, on the op `ssd`.

`chunk_size` changes no result upstream; here the machine's choice of backend has its own.

Source: state-spaces/mamba@e9594ce, mamba_ssm/ops/triton/ssd_combined.py.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.errors import ProblemError
from scanlab.integrations.causal_conv1d.causal_conv1d_interface import activation_of
from scanlab.integrations.causal_conv1d.causal_conv1d_varlen import sequence_bounds
from scanlab.integrations.mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from scanlab.integrations.mamba_ssm.ops.triton.layernorm_gated import rmsnorm_fn
from scanlab.runtime import ops as mixer
from scanlab.runtime.ssd import ssd
from scanlab_kernels.checks import expect, expect_one_device, expect_projection
from scanlab_kernels.ssd.problem import NO_LIMIT, Limits, SsdInputs


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: Limits = NO_LIMIT,
    return_final_states: bool = False,
    return_varlen_states: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Return the scan of Mamba-2, differentiably.

    Args:
        x: (batch, length, heads, head_dim).
        dt: (batch, length, heads).
        A: (heads,).
        B: (batch, length, groups, state).
        C: (batch, length, groups, state).
        chunk_size: Not used.
        D: (heads,) or (heads, head_dim).
        z: (batch, length, heads, head_dim).
        dt_bias: (heads,).
        initial_states: (batch, heads, head_dim, state).
        seq_idx: (batch, length), the sequence that a step belongs to; the initial states belong to sequence 0.
        cu_seqlens: (sequences + 1,), where sequences of a batch of one begin and end.
        dt_softplus: Apply softplus to dt + dt_bias.
        dt_limit: The lowest and the highest step size.
        return_final_states: Return the states after the last step too.
        return_varlen_states: Return the states after each sequence too.

    Returns:
        `out` like x, and as asked for the states after the last step (batch, heads, head_dim, state) and after each
        sequence (sequences, heads, head_dim, state).

    Raises:
        ProblemError: The tensors do not fit together.
    """
    inputs = SsdInputs(x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx)
    out, final_states = ssd(inputs, dt_softplus=dt_softplus, dt_limit=dt_limit)
    if not return_varlen_states:
        return (out, final_states) if return_final_states else out
    varlen_states = _states_after_each(inputs, cu_seqlens, dt_softplus, dt_limit)
    return (out, final_states, varlen_states) if return_final_states else (out, varlen_states)


def _states_after_each(inputs: SsdInputs, cu_seqlens: Tensor | None, dt_softplus: bool, dt_limit: Limits) -> Tensor:
    """Return the state after each sequence, every one of which starts from zero."""
    if cu_seqlens is None or inputs.x.shape[0] != 1:
        raise ProblemError("return_varlen_states: pass cu_seqlens and a batch of one.")
    states = []
    for begin, end in itertools.pairwise(sequence_bounds(cu_seqlens, inputs.x.shape[1])):
        varying = {name: getattr(inputs, name)[:, begin:end] for name in ("x", "dt", "B", "C")}
        part = inputs._replace(**varying, D=None, z=None, initial_state=None, seq_idx=None)
        states.append(ssd(part, dt_softplus=dt_softplus, dt_limit=dt_limit).final_state)
    return torch.cat(states)


def mamba_chunk_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """Return `mamba_chunk_scan_combined` without states; shapes as there."""
    return ssd(SsdInputs(x, dt, A, B, C, D, z, dt_bias), dt_softplus=dt_softplus).out


def ssd_selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: Limits = NO_LIMIT,
) -> Tensor:
    """Return the scan of Mamba-2, whose step sizes, rates and biases may differ within a head.

    Args:
        x: (batch, length, heads, head_dim).
        dt: (batch, length, heads) or (batch, length, heads, head_dim).
        A: (heads,) or (heads head_dim, state).
        B: (batch, length, groups, state).
        C: (batch, length, groups, state).
        D: (heads,) or (heads, head_dim).
        z: (batch, length, heads, head_dim).
        dt_bias: (heads,) or (heads, head_dim).
        dt_softplus: Apply softplus to dt + dt_bias.
        dt_limit: The lowest and the highest step size.

    Returns:
        The shape and dtype of x.

    Raises:
        ProblemError: The tensors do not fit together.
    """
    inputs = SsdInputs(x, dt, A, B, C, D, z, dt_bias)
    if dt.dim() == 4 or A.dim() == 2 or (dt_bias is not None and dt_bias.dim() == 2):
        return _scan_of_channels(inputs, dt_softplus, dt_limit)
    return ssd(inputs, dt_softplus=dt_softplus, dt_limit=dt_limit).out


def _scan_of_channels(inputs: SsdInputs, dt_softplus: bool, dt_limit: Limits) -> Tensor:
    """Return `ssd_selective_scan` as the selective scan of the channels of all heads."""
    x, dt, A, B, C, D, z, dt_bias, *_ = inputs
    if x.dim() != 4 or B.dim() != 4:
        raise ProblemError(f"x is {tuple(x.shape)}, B is {tuple(B.shape)}: must have four axes.")
    batch, length, *heads = x.shape

    def channels(name: str, values: Tensor, *before: int) -> Tensor:
        """Return values (*before, heads[, head_dim]) as (*before, dim)."""
        has_own = values.dim() > len(before) + 1
        expect(name, values, (*before, *(heads if has_own else heads[:1])), x)
        return (values if has_own else values[..., None]).expand(*before, *heads).flatten(-2)

    delta, bias = channels("dt", dt, batch, length), None if dt_bias is None else channels("dt_bias", dt_bias)
    groups, state = B.shape[2:]
    for name, each in (("B", B), ("C", C)):
        expect(name, each, (batch, length, groups, state), x)
    if A.dim() == 1:
        A = channels("A", A)[:, None].expand(-1, state)
    expect("A", A, (math.prod(heads), state), x)
    if tuple(dt_limit) != NO_LIMIT:
        delta = delta.to(torch.promote_types(delta.dtype, torch.float32))
        delta = delta if bias is None else delta + bias
        delta, bias, dt_softplus = (F.softplus(delta) if dt_softplus else delta).clamp(*dt_limit), None, False
    out = selective_scan_fn(
        x.flatten(2).mT,
        delta.mT,
        A,
        B.movedim(1, -1),
        C.movedim(1, -1),
        None if D is None else channels("D", D),
        None if z is None else z.flatten(2).mT,
        bias,
        dt_softplus,
    )
    assert isinstance(out, Tensor)
    return out.mT.reshape(x.shape)


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: Limits = NO_LIMIT,
    return_final_states: bool = False,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the output of a Mamba-2 layer, given its input projection: convolution, scan, norm, output projection.

    Args:
        zxbcdt: (batch, length, 2 mlp + 2 dim + 2 groups state + heads): gate and input of a gated MLP, gate z of the
            scan, its x, B and C before the convolution, and dt; dim is heads x head_dim, and mlp often 0.
        conv1d_weight: (dim + 2 groups state, width).
        conv1d_bias: (dim + 2 groups state,).
        dt_bias: (heads,).
        A: (heads,).
        D: (heads,) with headdim, or (heads, head_dim).
        chunk_size: Not used.
        initial_states: (batch, heads, head_dim, state).
        seq_idx: (batch, length) int32.
        dt_limit: The lowest and the highest step size.
        return_final_states: Return the states after the last step too.
        activation: Activation of the convolution, "silu" or None.
        rmsnorm_weight: (dim,); without it z gates the scan and there is no norm.
        rmsnorm_eps: Added to the mean square.
        outproj_weight: (model, mlp + dim).
        outproj_bias: (model,).
        headdim: Channels of a head, where D has one axis.
        ngroups: Groups of heads that share B and C.
        norm_before_gate: Normalise first and gate then.

    Returns:
        (batch, length, model), or without outproj_weight (batch, length, mlp + dim); with return_final_states also
        the states after the last step (batch, heads, head_dim, state).

    Raises:
        ProblemError: The tensors do not fit together.
    """
    expect_one_device(zxbcdt=zxbcdt, outproj_weight=outproj_weight, outproj_bias=outproj_bias)
    if outproj_weight is not None:
        expect_projection("outproj_weight", outproj_weight)
    heads = D.shape[0]
    head_dim = D.shape[1] if D.dim() == 2 else headdim
    if head_dim is None:
        raise ProblemError("headdim is None and D has one axis: give headdim, or D as (heads, head_dim).")
    dim = heads * head_dim
    state = (conv1d_weight.shape[0] - dim) // (2 * ngroups)
    mlp = (zxbcdt.shape[-1] - 2 * dim - 2 * ngroups * state - heads) // 2
    mlp_gate, mlp_input, z, xBC, dt = zxbcdt.split([mlp, mlp, dim, dim + 2 * ngroups * state, heads], dim=-1)
    xBC = mixer.causal_conv1d(
        xBC.mT, conv1d_weight, conv1d_bias, seq_idx=seq_idx, activation=activation_of(activation)
    ).mT
    x, B, C = xBC.split([dim, ngroups * state, ngroups * state], dim=-1)
    # norm(y silu(z)) takes the gate from the scan, which has y in registers.
    scan_gates = rmsnorm_weight is None or not norm_before_gate
    inputs = SsdInputs(
        x.unflatten(-1, (heads, head_dim)),
        dt,
        A,
        B.unflatten(-1, (ngroups, state)),
        C.unflatten(-1, (ngroups, state)),
        D,
        z.unflatten(-1, (heads, head_dim)) if scan_gates else None,
        dt_bias,
        initial_states,
        seq_idx,
    )
    y, final_states = ssd(inputs, dt_softplus=True, dt_limit=dt_limit)
    out = y.flatten(2)
    if rmsnorm_weight is not None:
        out = rmsnorm_fn(
            out, rmsnorm_weight, None, None if scan_gates else z, rmsnorm_eps, dim // ngroups, norm_before_gate
        )
    if mlp > 0:
        out = torch.cat((F.silu(mlp_gate) * mlp_input, out), dim=-1)
    if outproj_weight is not None:
        out = F.linear(out, outproj_weight, outproj_bias)
    return (out, final_states) if return_final_states else out


class MambaChunkScanCombinedFn:
    """Upstream's autograd function by its name: `apply` is `mamba_chunk_scan_combined`."""

    apply = staticmethod(mamba_chunk_scan_combined)


class MambaSplitConv1dScanCombinedFn:
    """Upstream's autograd function by its name: `apply` is `mamba_split_conv1d_scan_combined`."""

    apply = staticmethod(mamba_split_conv1d_scan_combined)
