"""States of packed sequences, under the names of `causal_conv1d.causal_conv1d_varlen`.

Source: Dao-AILab/causal-conv1d@0d2252d, causal_conv1d/causal_conv1d_varlen.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["causal_conv1d_varlen_states", "causal_conv1d_varlen_states_ref"]


@torch.no_grad()
def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """Return the last `state_len` inputs of each packed sequence of x (tokens, dim): (batch, dim, state_len).

    Shorter sequences get zeros on the left. Sequence i is x[cu_seqlens[i] : cu_seqlens[i + 1]].
    """
    bounds = cu_seqlens.tolist()
    states = x.new_zeros(len(bounds) - 1, state_len, x.shape[1])
    for state, begin, end in zip(states, bounds, bounds[1:], strict=False):
        last = x[max(begin, end - state_len) : end]
        state[state_len - len(last) :] = last
    return states.mT


causal_conv1d_varlen_states_ref = causal_conv1d_varlen_states
