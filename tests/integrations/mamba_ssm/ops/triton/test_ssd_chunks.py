"""The steps of a chunked scan, put together: they give what the whole scan gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scanlab.errors import ProblemError
from scanlab.integrations.mamba_ssm.ops.triton import ssd_chunks as steps
from scanlab.integrations.mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

BATCH, LENGTH, SIZE, HEADS, HEAD_DIM, GROUPS, STATE = 2, 10, 4, 4, 3, 2, 5


def test_the_steps_are_the_scan_and_so_are_its_gradients() -> None:
    torch.manual_seed(0)
    x, z = torch.randn(2, BATCH, LENGTH, HEADS, HEAD_DIM, dtype=torch.float64)
    B, C = torch.randn(2, BATCH, LENGTH, GROUPS, STATE, dtype=torch.float64)
    dt, A, D = torch.rand(BATCH, LENGTH, HEADS).double(), -torch.rand(HEADS).double(), torch.randn(HEADS).double()
    initial = torch.randn(BATCH, HEADS, HEAD_DIM, STATE, dtype=torch.float64)
    leaves = [each.requires_grad_() for each in (x, dt, A, B, C, D, z, initial)]

    padded = F.pad(dt, (0, 0, 0, -LENGTH % SIZE)).unflatten(1, (-1, SIZE)).permute(0, 3, 1, 2)
    sums = (padded * A[:, None, None]).cumsum(-1)
    added = steps.chunk_state(B, x, padded, sums)
    before, last = steps.state_passing(added.flatten(-2), sums[..., -1], initial.flatten(-2))
    got = steps.chunk_scan(B, C, x, padded, sums, before.unflatten(-1, (HEAD_DIM, STATE)), D, z)

    scan = mamba_chunk_scan_combined(x, dt, A, B, C, SIZE, D, z, None, initial, return_final_states=True)
    want, final = scan
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(last.unflatten(-1, (HEAD_DIM, STATE)), final)
    for one, other in zip(
        torch.autograd.grad(got.square().sum(), leaves), torch.autograd.grad(want.square().sum(), leaves), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_states_after_sequences_of_several_lengths() -> None:
    torch.manual_seed(0)
    x, B = torch.randn(LENGTH, HEADS, HEAD_DIM), torch.randn(LENGTH, GROUPS, STATE)
    dt, A = torch.rand(LENGTH, HEADS), -torch.rand(HEADS)
    ends = torch.tensor([0, 3, 4, 10])
    want = torch.cat(
        [
            mamba_chunk_scan_combined(
                x[None, begin:end],
                dt[None, begin:end],
                A,
                B[None, begin:end],
                B[None, begin:end],
                SIZE,
                return_final_states=True,
            )[1]
            for begin, end in ((0, 3), (3, 4), (4, 10))
        ]
    )
    padded = F.pad(dt, (0, 0, 0, -LENGTH % SIZE)).unflatten(0, (-1, SIZE)).permute(2, 0, 1)
    sums = (padded * A[:, None, None]).cumsum(-1)
    # the states before each chunk, of the sequence that goes on into it: the last one starts at 4, a chunk's start
    added = steps.chunk_state(B[None], x[None], padded[None], sums[None])[0]
    before = torch.stack((torch.zeros_like(added[0]), added[0], added[1]))
    got = steps.chunk_state_varlen(B, x, padded, sums, ends, before)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_said() -> None:
    x, B, dt = torch.randn(1, 9, 4, 3), torch.randn(1, 9, 3, 5), torch.rand(1, 4, 2, 4)
    with pytest.raises(ProblemError, match="3 groups do not divide the 4 heads"):
        steps.chunk_state(B[:, :8], x[:, :8], dt, dt)
    with pytest.raises(ProblemError, match="0 groups do not divide the 4 heads"):
        steps.chunk_state(B[:, :8, :0], x[:, :8], dt, dt)
    with pytest.raises(ProblemError, match="projection is on meta, x on cpu"):
        steps.chunk_state(B[:, :8, :2].to("meta"), x[:, :8], dt, dt)
    with pytest.raises(ProblemError, match="x has 9 steps: must have at most the 8 of dt"):
        steps.chunk_state(B[:, :, :2], x, dt, dt)
    states = torch.zeros(2, 4, 3, 5)
    with pytest.raises(ProblemError, match="cu_seqlens"):
        steps.chunk_state_varlen(B[0, :8, :2], x[0, :8], dt[0], dt[0], torch.tensor([0, 9]), states)
    assert steps.chunk_state_varlen(B[0, :8, :2], x[0, :8], dt[0], dt[0], torch.tensor([0]), states).shape[0] == 0


def test_complex_and_sparse_tensors_are_refused_and_not_cut_or_broadcast() -> None:
    x, B = torch.randn(1, 4, HEADS, HEAD_DIM), torch.randn(1, 4, GROUPS, STATE)
    dt = torch.rand(1, HEADS, 1, 4)
    states = torch.randn(1, 1, HEADS, HEAD_DIM, STATE)
    with pytest.raises(ProblemError, match="B is torch.complex64: must be real"):
        steps.chunk_state(B.to(torch.complex64), x, dt, -dt)
    with pytest.raises(ProblemError, match="x is torch.complex64: must be real"):
        steps.chunk_state_varlen(B[0], x[0].to(torch.complex64), dt[0], -dt[0], torch.tensor([0, 4]), states[0])
    with pytest.raises(ProblemError, match="initial_states is torch.complex64: must be real"):
        steps.state_passing(states.flatten(-2), -dt[..., 0], states[:, 0].flatten(-2).to(torch.complex64))
    with pytest.raises(ProblemError, match="z is torch.complex64: must be real"):
        steps.chunk_scan(B, B, x, dt, -dt, states, None, x.to(torch.complex64))
    with pytest.raises(ProblemError, match="D has the layout torch.sparse_coo: must be dense"):
        steps.chunk_scan(B, B, x, dt, -dt, states, torch.ones(HEADS).to_sparse())
