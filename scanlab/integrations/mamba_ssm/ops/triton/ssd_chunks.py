"""The steps of a chunked Mamba-2 scan, which upstream's ssd_chunk_state, ssd_state_passing and ssd_chunk_scan export.

In PyTorch; `mamba_chunk_scan_combined` does all of them at once, faster. `dt` and `dA_cumsum`, the sums of dt A from
the start of a chunk, are (batch, heads, chunks, chunk_size); other shapes are those of ssd_combined.

Source: state-spaces/mamba@e9594ce, mamba_ssm/ops/triton/ssd_chunk_state.py, ssd_state_passing.py, ssd_chunk_scan.py.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.errors import ProblemError
from scanlab.integrations.causal_conv1d.causal_conv1d_varlen import sequence_bounds
from scanlab_kernels.checks import expect_dense_real, expect_one_device


def chunk_state(B: Tensor, x: Tensor, dt: Tensor, dA_cumsum: Tensor, states_in_fp32: bool = True) -> Tensor:
    """Return the state that each chunk adds up from zero, (batch, chunks, heads, head_dim, state). Differentiable.

    Args:
        B: (batch, length, groups, state).
        x: (batch, length, heads, head_dim).
        dt: (batch, heads, chunks, chunk_size).
        dA_cumsum: The same shape.
        states_in_fp32: Return float32, or float64 where x, dt or dA_cumsum is, and not the dtype of B.
    """
    expect_dense_real(B=B, x=x, dt=dt, dA_cumsum=dA_cumsum)
    drive = _chunks(x, dt) * (dt * (dA_cumsum[..., -1:] - dA_cumsum).exp()).movedim(1, -1)[..., None]
    states = torch.einsum("bclhp,bclhn->bchpn", drive, _chunks(_by_head(B, x), dt).to(drive.dtype))
    return states if states_in_fp32 else states.to(B.dtype)


def chunk_state_ref(B: Tensor, x: Tensor, dt: Tensor, dA_cumsum: Tensor) -> Tensor:
    """Return `chunk_state` in the dtype of x."""
    return chunk_state(B, x, dt, dA_cumsum).to(x.dtype)


def chunk_state_varlen(
    B: Tensor, x: Tensor, dt: Tensor, dA_cumsum: Tensor, cu_seqlens: Tensor, chunk_states: Tensor
) -> Tensor:
    """Return the state after each sequence, (sequences, heads, head_dim, state), each starting from zero.

    Args:
        B: (length, groups, state): the sequences one after another.
        x: (length, heads, head_dim).
        dt: (heads, chunks, chunk_size).
        dA_cumsum: The same shape.
        cu_seqlens: (sequences + 1,), where sequences begin and end.
        chunk_states: (chunks, heads, head_dim, state), the states before each chunk.

    Raises:
        ProblemError: cu_seqlens does not bound sequences of x.
    """
    expect_dense_real(B=B, x=x, dt=dt, dA_cumsum=dA_cumsum, chunk_states=chunk_states)
    size = dt.shape[-1]
    B = _by_head(B[None], x[None])[0]
    states = []
    for begin, end in itertools.pairwise(sequence_bounds(cu_seqlens, len(x))):
        chunk = (end - 1) // size
        start, steps = max(begin, chunk * size), slice(max(begin - chunk * size, 0), end - chunk * size)
        sums = dA_cumsum[:, chunk, steps]  # (heads, steps)
        weights = (dt[:, chunk, steps] * (sums[:, -1:] - sums).exp()).mT[..., None]
        state = torch.einsum("lhp,lhn->hpn", x[start:end] * weights, B[start:end].to(weights.dtype))
        if begin < chunk * size:  # it began in an earlier chunk
            state = state + sums[:, -1, None, None].exp() * chunk_states[chunk]
        states.append(state.to(chunk_states.dtype))
    return torch.stack(states) if states else chunk_states[:0]


def state_passing(
    states: Tensor, dA_chunk_cumsum: Tensor, initial_states: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the state before each chunk, and the last one. Differentiable.

    Args:
        states: (batch, chunks, heads, dim), what each chunk adds.
        dA_chunk_cumsum: (batch, heads, chunks), the sums of dt A over each chunk.
        initial_states: (batch, heads, dim), zero where None.

    Returns:
        (batch, chunks, heads, dim) and (batch, heads, dim).
    """
    expect_dense_real(states=states, dA_chunk_cumsum=dA_chunk_cumsum, initial_states=initial_states)
    h = torch.zeros_like(states[:, 0]) if initial_states is None else initial_states.to(states.dtype)
    before = []
    for added, decay in zip(states.unbind(1), dA_chunk_cumsum.exp()[..., None].unbind(2), strict=True):
        before.append(h)
        h = h * decay.to(h.dtype) + added
    return torch.stack(before, dim=1), h


def chunk_scan(
    B: Tensor,
    C: Tensor,
    x: Tensor,
    dt: Tensor,
    dA_cumsum: Tensor,
    prev_states: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
) -> Tensor:
    """Return the outputs of the chunks, in the shape and dtype of x. Differentiable.

    Args:
        B: (batch, length, groups, state).
        C: The same shape.
        x: (batch, length, heads, head_dim).
        dt: (batch, heads, chunks, chunk_size).
        dA_cumsum: The same shape.
        prev_states: (batch, chunks, heads, head_dim, state), the states before each chunk.
        D: (heads,) or (heads, head_dim).
        z: The shape of x; no gate where None.
    """
    expect_dense_real(B=B, C=C, x=x, dt=dt, dA_cumsum=dA_cumsum, prev_states=prev_states, D=D, z=z)
    B, C, chunked = (_chunks(each, dt).to(dt.dtype) for each in (_by_head(B, x), _by_head(C, x), x))
    sums = dA_cumsum.movedim(1, 2)  # (batch, chunks, heads, chunk_size)
    after = torch.ones(dt.shape[-1], dt.shape[-1], dtype=torch.bool, device=x.device).triu(1)
    decay = (sums[..., :, None] - sums[..., None, :]).masked_fill(after, -torch.inf).exp()
    weights = torch.einsum("bclhn,bcshn->bchls", C, B) * decay * dt.movedim(1, 2)[..., None, :]
    out = torch.einsum("bchls,bcshp->bclhp", weights, chunked)
    out = out + torch.einsum("bclhn,bchpn->bclhp", C, prev_states.to(C.dtype)) * sums.exp().mT[..., None]
    out = out.flatten(1, 2)[:, : x.shape[1]]
    if D is not None:
        out = out + x * (D if D.dim() == 2 else D[:, None])
    if z is not None:
        out = out * F.silu(z.to(out.dtype))
    return out.to(x.dtype)


# upstream's kernels have a reference beside them; here both are PyTorch
state_passing_ref = state_passing
chunk_scan_ref = chunk_scan


def _by_head(B: Tensor, x: Tensor) -> Tensor:
    """Return B (batch, length, groups, state) for each head of x, (batch, length, heads, state)."""
    expect_one_device(x=x, projection=B)
    if not B.shape[-2] or x.shape[-2] % B.shape[-2]:
        raise ProblemError(f"{B.shape[-2]} groups do not divide the {x.shape[-2]} heads of x.")
    return B.repeat_interleave(x.shape[-2] // B.shape[-2], dim=-2)


def _chunks(x: Tensor, dt: Tensor) -> Tensor:
    """Return x (batch, length, heads, dim) in the chunks of dt, zero after its end: (batch, chunks, steps, ...)."""
    missing = dt.shape[2] * dt.shape[3] - x.shape[1]
    if missing < 0:
        raise ProblemError(f"x has {x.shape[1]} steps: must have at most the {dt.shape[2] * dt.shape[3]} of dt.")
    chunks: Tensor = F.pad(x, (0, 0, 0, 0, 0, missing)).unflatten(1, dt.shape[2:])
    return chunks
