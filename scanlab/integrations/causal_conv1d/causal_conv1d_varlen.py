"""States of packed sequences, under the names of `causal_conv1d.causal_conv1d_varlen`.

Source: Dao-AILab/causal-conv1d@0d2252d, causal_conv1d/causal_conv1d_varlen.py.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from scanlab.errors import ProblemError

__all__ = ["causal_conv1d_varlen_states", "causal_conv1d_varlen_states_ref"]


@torch.no_grad()
def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """Return the last `state_len` inputs of each packed sequence of x (tokens, dim): (batch, dim, state_len).

    Shorter sequences get zeros on the left. Sequence i is x[cu_seqlens[i] : cu_seqlens[i + 1]].

    Raises:
        ProblemError: x has other axes, state_len is negative, or cu_seqlens does not bound sequences of x.
    """
    if x.dim() != 2 or state_len < 0:
        raise ProblemError(f"x is {tuple(x.shape)}, state_len={state_len}: must be (tokens, dim) and not negative.")
    bounds = sequence_bounds(cu_seqlens, len(x))
    states = x.new_zeros(len(bounds) - 1, state_len, x.shape[1])
    for state, (begin, end) in zip(states, itertools.pairwise(bounds), strict=True):
        last = x[max(begin, end - state_len) : end]
        state[state_len - len(last) :] = last
    return states.mT


def sequence_bounds(cu_seqlens: Tensor, tokens: int) -> list[int]:
    """Return the first step of each of the packed sequences of `tokens` steps, and the end of the last.

    Raises:
        ProblemError: They are missing, not whole numbers, beyond the tokens, or not in order.
    """
    is_whole = not (cu_seqlens.is_floating_point() or cu_seqlens.is_complex() or cu_seqlens.dtype == torch.bool)
    if cu_seqlens.dim() != 1 or not is_whole or not len(cu_seqlens):
        raise ProblemError(
            f"cu_seqlens is {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}: must be (sequences + 1,) of int32."
        )
    bounds: list[int] = cu_seqlens.tolist()
    if bounds[0] < 0 or bounds[-1] > tokens or any(end < begin for begin, end in itertools.pairwise(bounds)):
        raise ProblemError(f"cu_seqlens={bounds}: must rise from 0 to the number of tokens, which is {tokens}.")
    return bounds


causal_conv1d_varlen_states_ref = causal_conv1d_varlen_states
