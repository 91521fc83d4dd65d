"""Stand-in of the compiled modules `selective_scan_cuda_core` and `selective_scan_cuda_nrow`: out in the dtype of u.

Source: MzeroMiko/VMamba@5cb8c14, kernels/selective_scan/csrc/selective_scan/cus and cusnrow.
"""

from __future__ import annotations

from torch import Tensor

from scanlab.integrations.vmamba import selective_scan_cuda_oflex
from scanlab.integrations.vmamba.selective_scan_cuda_oflex import bwd

__all__ = ["bwd", "fwd"]


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
    """Return [out, x] as `selective_scan_cuda_oflex.fwd` with out_float=False."""
    return selective_scan_cuda_oflex.fwd(u, delta, A, B, C, D, delta_bias, delta_softplus, nrows, False)
