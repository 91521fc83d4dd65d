"""Reference functions of `mamba_ssm.ops.triton.ssd_combined`; those that check a kernel run in plain PyTorch.

Source: state-spaces/mamba@e9594ce, mamba_ssm/ops/triton/ssd_combined.py.
"""

from __future__ import annotations

from torch import Tensor

from scanlab.errors import ProblemError
from scanlab.integrations.causal_conv1d.causal_conv1d_interface import activation_of
from scanlab.integrations.mamba_ssm.ops.triton.ssd_combined import (
    mamba_chunk_scan,
    mamba_split_conv1d_scan_combined,
    ssd_selective_scan,
)
from scanlab.runtime import ops as mixer
from scanlab_kernels.ssd.problem import NO_LIMIT, Limits


def ssd_chunk_scan_combined_ref(
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
    """Return `mamba_chunk_scan` in plain PyTorch; shapes as in `mamba_chunk_scan_combined`."""
    with mixer.in_torch():
        return mamba_chunk_scan(x, dt, A, B, C, chunk_size, D, z, dt_bias, dt_softplus)


def mamba_conv1d_scan_ref(
    xBC: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt: Tensor,
    A: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: Limits = NO_LIMIT,
    activation: str | None = "silu",
    headdim: int | None = None,
    ngroups: int = 1,
) -> Tensor:
    """Return the convolution and scan of a Mamba-2 layer, (batch, length, dim), in plain PyTorch.

    Args:
        xBC: (batch, length, dim + 2 groups state); dim is heads x head_dim.
        conv1d_weight: (dim + 2 groups state, width).
        conv1d_bias: (dim + 2 groups state,).
        dt: (batch, length, heads) or (batch, length, heads, head_dim).
        A: (heads,) or (dim, state).
        chunk_size: Not used.
        D: (heads,) or (heads, head_dim).
        z: (batch, length, dim).
        dt_bias: (heads,) or (heads, head_dim).
        dt_softplus: Apply softplus to dt + dt_bias.
        dt_limit: The lowest and the highest step size.
        activation: Activation of the convolution, "silu" or None.
        headdim: Channels of a head, where neither z nor D tells.
        ngroups: Groups of heads that share B and C.

    Raises:
        ProblemError: The tensors do not fit together, or nothing tells the channels of a head.
    """
    heads = dt.shape[2]
    if z is not None:
        headdim = z.shape[-1] // heads
    elif D is not None and D.dim() == 2:
        headdim = D.shape[1]
    if headdim is None:
        raise ProblemError("headdim is None: give headdim, z, or D as (heads, head_dim).")
    dim = heads * headdim
    with mixer.in_torch():
        xBC = mixer.causal_conv1d(xBC.mT, conv1d_weight, conv1d_bias, activation=activation_of(activation)).mT
        x, B, C = xBC.tensor_split((dim, (dim + xBC.shape[-1]) // 2), dim=-1)
        out = ssd_selective_scan(
            x.unflatten(-1, (heads, headdim)),
            dt,
            A,
            B.unflatten(-1, (ngroups, -1)),
            C.unflatten(-1, (ngroups, -1)),
            D,
            None if z is None else z.unflatten(-1, (heads, headdim)),
            dt_bias,
            dt_softplus,
            dt_limit,
        )
    return out.flatten(2)


def mamba_split_conv1d_scan_ref(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    dt_limit: Limits = NO_LIMIT,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> Tensor:
    """Return `mamba_split_conv1d_scan_combined` in plain PyTorch; shapes as there."""
    with mixer.in_torch():
        out = mamba_split_conv1d_scan_combined(
            zxbcdt,
            conv1d_weight,
            conv1d_bias,
            dt_bias,
            A,
            D,
            chunk_size,
            dt_limit=dt_limit,
            activation=activation,
            rmsnorm_weight=rmsnorm_weight,
            rmsnorm_eps=rmsnorm_eps,
            outproj_weight=outproj_weight,
            outproj_bias=outproj_bias,
            headdim=headdim,
            ngroups=ngroups,
            norm_before_gate=norm_before_gate,
        )
    assert isinstance(out, Tensor)
    return out
