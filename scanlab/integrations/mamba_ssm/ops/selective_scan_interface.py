"""Functions of `mamba_ssm.ops.selective_scan_interface`, with their signatures, on this machine's scan.

Each is one composition of differentiable ops, so that every gradient is that of the function: upstream, the backward
pass of bimamba_inner_fn loses the gradient of z from the second direction, and the norms of B, C and delta let none
through.

Source: state-spaces/mamba@e9594ce and hustvl/Vim@dd0358a, mamba_ssm/ops/selective_scan_interface.py.
"""

from __future__ import annotations

import functools
import logging

import torch.nn.functional as F
from torch import Tensor

from scanlab.contract.problem import ScanInputs
from scanlab.contract.space import config_key
from scanlab.errors import ProblemError
from scanlab.integrations.mamba_ssm import cuda_extensions
from scanlab.runtime import dispatch
from scanlab.runtime import ops as mixer
from scanlab.runtime.promotion import promoted_scan
from scanlab.runtime.traced import is_traced
from scanlab_kernels.checks import expect_one_device, expect_projection

log = logging.getLogger("scanlab")

# Upstream imports its compiled modules here, and others take them from here.
selective_scan_cuda = causal_conv1d_cuda = cuda_extensions


def say_who_serves() -> None:
    """Log once in a process which backend serves, unless the dispatcher has done so."""
    if not is_traced():
        _say_who_serves()


@functools.cache
def _say_who_serves() -> None:
    dispatcher = dispatch.dispatcher()
    if dispatcher.decided_scans and not dispatcher.has_spoken:
        *_, decision = dispatcher.decided_scans.values()
        served = f"{decision.backend} {config_key(decision.config)}"
        log.warning("scanlab: %s serves mamba_ssm's scans: %s.", served, decision.reason)


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return `scanlab.selective_scan_fn`, which has this signature; differentiable in the last state too."""
    result = dispatch.selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)
    say_who_serves()
    return result


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the same from the reference loop, to compare with."""
    return dispatch.selective_scan_fn(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state, backend="reference"
    )


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """Return the output of a Mamba mixer before its output projection: convolution, selection and scan.

    Under autocast the projections run in its dtype.

    Args:
        xz: (batch, 2 dim, length): x, which is convolved and scanned, and the gate z.
        conv1d_weight: (dim, 1, width).
        conv1d_bias: (dim,).
        x_proj_weight: (rank + columns of B + columns of C, dim); a B or C that is given has no columns.
        delta_proj_weight: (dim, rank).
        A: (dim, state), real or complex.
        B: (dim, state), constant over time; selected by x where None.
        C: The same.
        D: (dim,).
        delta_bias: (dim,).
        B_proj_bias: (columns of B,).
        C_proj_bias: (columns of C,).
        delta_softplus: Apply softplus to the step size.
        checkpoint_lvl: Ignored. Upstream it saves memory and changes no value.
        b_rms_weight: (state,), normalises B.
        c_rms_weight: (state,), normalises C.
        dt_rms_weight: (dim,), normalises the step size.
        b_c_dt_rms_eps: Added to the mean squares of these norms.

    Returns:
        (batch, dim, length) in the dtype of xz.
    """
    u, z = _convolved(xz, conv1d_weight, conv1d_bias)
    inputs = projected(u, z, x_proj_weight, delta_proj_weight, A, B, C, D, delta_bias, B_proj_bias, C_proj_bias)
    normed = {
        "B": _rms(inputs.B, b_rms_weight, b_c_dt_rms_eps),
        "C": _rms(inputs.C, c_rms_weight, b_c_dt_rms_eps),
        "delta": _rms(inputs.delta, dt_rms_weight, b_c_dt_rms_eps),
    }
    out = dispatch.scan(promoted_scan(inputs.with_tensors(**normed)), delta_softplus=delta_softplus).out
    say_who_serves()
    return out.to(xz.dtype)


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """Return `mamba_inner_fn_no_out_proj`, projected by out_proj_weight (features, dim): (batch, length, features)."""
    _expect_projection(xz, out_proj_weight, out_proj_bias)
    weights = (conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight)
    constants = (A, B, C, D, delta_bias, B_proj_bias, C_proj_bias)
    norms = (b_rms_weight, c_rms_weight, dt_rms_weight, b_c_dt_rms_eps)
    rest = (*weights, *constants, delta_softplus, checkpoint_lvl, *norms)
    y = mamba_inner_fn_no_out_proj(xz, *rest)
    return F.linear(y.mT, out_proj_weight, out_proj_bias)


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """Return `mamba_inner_fn` with a second scan added, by A_b and from the last step to the first.

    Both scans read the same convolved x, step sizes, B, C, D and z.
    """
    _expect_projection(xz, out_proj_weight, out_proj_bias)
    if A_b.is_complex() != A.is_complex():
        raise ProblemError(f"A is {A.dtype} and A_b is {A_b.dtype}: both must be real, or both complex.")
    u, z = _convolved(xz, conv1d_weight, conv1d_bias)
    forward = promoted_scan(
        projected(u, z, x_proj_weight, delta_proj_weight, A, B, C, D, delta_bias, B_proj_bias, C_proj_bias)
    )
    reverse = forward.with_tensors(A=A_b.to(forward.A.dtype))
    y = dispatch.scan(forward, reverse, delta_softplus=delta_softplus, direction="bidirectional").out
    say_who_serves()
    return F.linear(y.mT.to(xz.dtype), out_proj_weight, out_proj_bias)


def _expect_projection(xz: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    expect_one_device(xz=xz, out_proj_weight=weight, out_proj_bias=bias)
    expect_projection("out_proj_weight", weight)


def mamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """Return `mamba_inner_fn` with the softplus always on, as upstream: delta_softplus has no effect."""
    weights = (conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias)
    return mamba_inner_fn(xz, *weights, A, B, C, D, delta_bias, B_proj_bias, C_proj_bias)


def bimamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """Return `bimamba_inner_fn` with the softplus always on, as upstream: delta_softplus has no effect."""
    weights = (conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias)
    return bimamba_inner_fn(xz, *weights, A, A_b, B, C, D, delta_bias, B_proj_bias, C_proj_bias)


def projected(
    u: Tensor,
    z: Tensor,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
) -> ScanInputs:
    """Return the inputs of the scan: the convolved u (batch, dim, length), the gate z, and projections of u.

    Raises:
        ProblemError: The tensors are on several devices, or x_proj_weight has another number of rows.
    """
    weights = {"x_proj_weight": x_proj_weight, "delta_proj_weight": delta_proj_weight}
    expect_one_device(xz=u, **weights, A=A, B=B, C=C, D=D, delta_bias=delta_bias)
    rank, state = delta_proj_weight.shape[1], A.shape[1] * (2 if A.is_complex() else 1)
    rows = rank + state * ((B is None) + (C is None))
    if x_proj_weight.shape[0] != rows:
        raise ProblemError(
            f"x_proj_weight has {x_proj_weight.shape[0]} rows: must be {rows}, {rank} for delta_proj_weight and"
            f" {state} each for those of B and C that are not given."
        )
    columns = F.linear(u.mT, x_proj_weight)  # (batch, length, rank + columns of B + columns of C)
    delta = F.linear(columns[..., :rank], delta_proj_weight)
    if B is None:
        B = _varying(columns[..., rank : rank + state], B_proj_bias, A)
    if C is None:
        C = _varying(columns[..., -state:], C_proj_bias, A)
    return ScanInputs(u=u, delta=delta.mT, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)


def _convolved(xz: Tensor, conv1d_weight: Tensor, conv1d_bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the convolved x, and z."""
    if conv1d_weight.dim() != 3 or conv1d_weight.shape[1] != 1:
        raise ProblemError(f"conv1d_weight is {tuple(conv1d_weight.shape)}: must be (dim, 1, width).")
    x, z = xz.chunk(2, dim=1)
    return mixer.causal_conv1d(x, conv1d_weight[:, 0], conv1d_bias, activation="silu"), z


def _varying(columns: Tensor, bias: Tensor | None, A: Tensor) -> Tensor:
    """Return B or C (batch, state, length) from its columns (batch, length, state); for a complex A in pairs."""
    if bias is not None:
        columns = columns + bias.to(columns.dtype)
    if not A.is_complex():
        return columns.mT
    pairs: Tensor = columns.unflatten(-1, (-1, 2))
    return pairs.transpose(1, 2).flatten(-2)


def _rms(values: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Return `values` (batch, channels, length) normalised over the channels; as they are without a weight."""
    return values if weight is None else mixer.add_norm(values.mT.contiguous(), None, weight, eps=eps)[0].mT


class SelectiveScanFn:
    """Upstream's autograd function by its name: `apply` is `selective_scan_fn`."""

    apply = staticmethod(selective_scan_fn)


class MambaInnerFn:
    """Upstream's autograd function by its name: `apply` is `mamba_inner_fn`."""

    apply = staticmethod(mamba_inner_fn)


class MambaInnerFnNoOutProj:
    """Upstream's autograd function by its name: `apply` is `mamba_inner_fn_no_out_proj`."""

    apply = staticmethod(mamba_inner_fn_no_out_proj)


class BiMambaInnerFn:
    """Upstream's autograd function by its name: `apply` is `bimamba_inner_fn`."""

    apply = staticmethod(bimamba_inner_fn)
