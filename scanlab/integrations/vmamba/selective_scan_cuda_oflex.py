"""Stand-in of the compiled module `selective_scan_cuda_oflex`: a grouped scan without a gate.

Source: MzeroMiko/VMamba@f479b4a, kernels/selective_scan/csrc/selective_scan/cusoflex/selective_scan_oflex.cpp.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scanlab.errors import ProblemError
from scanlab.integrations.mamba_ssm import cuda_extensions


def fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int,
    out_float: bool,
) -> list[Tensor]:
    """Return [out, x], where x is an argument of `bwd`.

    Args:
        u: (batch, groups * dim, length).
        delta: The shape of u, or (batch, fewer channels, length), each repeated for its channels of u.
        A: (groups * dim, state).
        B: (batch, groups, state, length).
        C: The shape of B.
        D: (groups * dim,).
        delta_bias: (channels of delta,).
        delta_softplus: Apply softplus to delta + delta_bias.
        nrows: Ignored. The CUDA kernel's rows per block change no value.
        out_float: Return out in float32 instead of the dtype of u.
    """
    repeats = _repeats(u, delta)
    if out_float:
        u = u.to(_wide(u.dtype))
    delta = delta.repeat_interleave(repeats, 1)
    delta_bias = None if delta_bias is None else delta_bias.repeat_interleave(repeats, 0)
    return cuda_extensions.fwd(u, delta, A, B, C, D, None, delta_bias, delta_softplus)


def bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    delta_softplus: bool,
    nrows: int,
) -> list[Tensor | None]:
    """Return [du, ddelta, dA, dB, dC, dD, ddelta_bias], each in the shape and dtype of its tensor.

    dout is the gradient of out, in the dtype of u or float32. x and nrows are ignored: the states are computed again.
    """
    repeats = _repeats(u, delta)
    repeated = delta.repeat_interleave(repeats, 1).to(_wide(delta.dtype))
    bias = None if delta_bias is None else delta_bias.repeat_interleave(repeats, 0)
    du, ddelta, dA, dB, dC, dD, dbias = cuda_extensions.bwd(
        u.to(_wide(u.dtype)), repeated, A, B, C, D, None, bias, dout, x, None, None, delta_softplus, False
    )
    assert du is not None
    assert ddelta is not None
    ddelta = ddelta.unflatten(1, (-1, repeats)).sum(2).to(delta.dtype)
    dbias = None if dbias is None else dbias.unflatten(0, (-1, repeats)).sum(1)
    return [du.to(u.dtype), ddelta, dA, dB, dC, dD, dbias]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _repeats(u: Tensor, delta: Tensor) -> int:
    """Return the number of channels of u for each channel of delta."""
    channels, fewer = int(u.shape[1]), int(delta.shape[1])  # torch.jit.trace gives tensors
    repeats, rest = (1, 0) if channels == fewer else divmod(channels, fewer) if fewer else (0, channels)
    if rest:
        raise ProblemError(f"u has {channels} channels and delta {fewer}: those of u must be a multiple of delta's.")
    return repeats
