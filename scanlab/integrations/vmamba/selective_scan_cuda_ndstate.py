"""Stand-in of the compiled module `selective_scan_cuda_ndstate`: a state of one, whose axis A, B and C lack.

Source: MzeroMiko/VMamba@5cb8c14, kernels/selective_scan/csrc/selective_scan/cusndstate.
"""

from __future__ import annotations

from torch import Tensor

from scanlab.integrations.vmamba import selective_scan_cuda_core


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
) -> list[Tensor]:
    """Return [out, x] as `selective_scan_cuda_core.fwd`, for A (groups * dim,) and B, C (batch, groups, length)."""
    A, B, C = A.unsqueeze(1), B.unsqueeze(2), C.unsqueeze(2)
    return selective_scan_cuda_core.fwd(u, delta, A, B, C, D, delta_bias, delta_softplus, nrows)


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
    """Return [du, ddelta, dA, dB, dC, dD, ddelta_bias]; those of A, B and C lack the state's axis too."""
    A, B, C = A.unsqueeze(1), B.unsqueeze(2), C.unsqueeze(2)
    gradients = selective_scan_cuda_core.bwd(u, delta, A, B, C, D, delta_bias, dout, x, delta_softplus, nrows)
    du, ddelta, dA, dB, dC, dD, ddelta_bias = gradients
    assert dA is not None
    assert dB is not None
    assert dC is not None
    return [du, ddelta, dA.squeeze(1), dB.squeeze(2), dC.squeeze(2), dD, ddelta_bias]
