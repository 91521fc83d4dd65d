"""The functions of `mamba_ssm.modules.ssd_minimal`.

Source: state-spaces/mamba@e9594ce, mamba_ssm/modules/ssd_minimal.py; Dao and Gu 2024, listing 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scanlab.errors import ProblemError
from scanlab.integrations.mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
from scanlab_kernels.checks import expect
from scanlab_kernels.ssd import chunked
from scanlab_kernels.ssd.operands import Operands

__all__ = ["mamba_chunk_scan_combined", "segsum", "segsum_unstable", "ssd_minimal_discrete"]


def segsum(x: Tensor) -> Tensor:
    """Return the sums of x (..., length) from after step s to t, (..., t, s); -inf where s is after t."""
    length = x.shape[-1]
    after = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
    return x[..., None].expand(*x.shape, length).tril(-1).cumsum(-2).masked_fill(after, -torch.inf)


def segsum_unstable(x: Tensor) -> Tensor:
    """Return `segsum` as differences of sums from the start, which lose digits."""
    sums = x.cumsum(-1)
    after = torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool, device=x.device).triu(1)
    return (sums[..., :, None] - sums[..., None, :]).masked_fill(after, -torch.inf)


def ssd_minimal_discrete(
    X: Tensor, A: Tensor, B: Tensor, C: Tensor, block_len: int, initial_states: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the outputs and the last state of a discretised Mamba-2, differentiably.

    Args:
        X: (batch, length, heads, head_dim), dt x.
        A: (batch, length, heads), dt A: logarithms of the decays.
        B: (batch, length, groups, state), for heads/groups adjacent heads each; upstream takes one group, or one for
            each head.
        C: (batch, length, groups, state).
        block_len: Steps of a chunk; divides the length.
        initial_states: (batch, 1, heads, head_dim, state).

    Returns:
        (batch, length, heads, head_dim) and (batch, heads, head_dim, state).

    Raises:
        ProblemError: The dtypes or devices differ, the shapes do not fit, or block_len does not divide the length.
    """
    if len({each.dtype for each in (X, A, B, C)}) > 1:
        raise ProblemError(f"X, A, B, C are {X.dtype}, {A.dtype}, {B.dtype}, {C.dtype}: must have one dtype.")
    if X.dim() != 4 or B.dim() != 4:
        raise ProblemError(f"X is {tuple(X.shape)}, B is {tuple(B.shape)}: must have four axes.")
    batch, length, heads, head_dim = X.shape
    if block_len < 1 or length % block_len:
        raise ProblemError(f"block_len={block_len} does not divide the length {length}; pad X with zeros.")
    groups, state = B.shape[2:]
    if groups < 1 or heads % groups:
        raise ProblemError(f"B has {groups} groups, which do not divide the {heads} heads of X.")
    expect("A", A, (batch, length, heads), X)
    for name, each in (("B", B), ("C", C)):
        expect(name, each, (batch, length, groups, state), X)
    if initial_states is not None:
        expect("initial_states", initial_states, (batch, 1, heads, head_dim, state), X)
    by_group = (groups, heads // groups)
    drive, log_decay = X.unflatten(2, by_group), A.unflatten(2, by_group)
    if initial_states is None:
        h = X.new_zeros(batch, groups, state, heads // groups, head_dim)
    else:
        h = initial_states[:, 0].unflatten(1, by_group).movedim(-1, 2)
    outs = [X[:, :0]]
    for start in range(0, length, block_len):
        now = slice(start, start + block_len)
        y, h = chunked.solve(Operands(drive[:, now], log_decay[:, now], B[:, now], C[:, now], h))
        outs.append(y.flatten(2, 3))
    return torch.cat(outs, dim=1), h.movedim(2, -1).flatten(1, 2)
