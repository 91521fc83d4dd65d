"""Gated activation of `mamba_ssm.ops.triton.k_activations`.

Source: state-spaces/mamba@e9594ce, mamba_ssm/ops/triton/k_activations.py.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def swiglu(xy: Tensor) -> Tensor:
    """Return silu(x) y (..., dim) for x and y side by side (..., 2 dim). Differentiable."""
    x, y = xy.chunk(2, dim=-1)
    return F.silu(x) * y


class SwiGLU:
    """Upstream's autograd function by its name: `apply` is `swiglu`."""

    apply = staticmethod(swiglu)
