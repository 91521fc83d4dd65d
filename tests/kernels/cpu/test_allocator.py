"""The memory of large outputs: used again once it is free, and offered to the system until then."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
import torch

from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem, make_inputs
from scanlab_kernels.selective_scan.native import backend as native

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere outputs have the memory that torch gives")

LARGE = ScanProblem(batch=1, dim=64, length=1 << 15, state=1, layout="dim_last")  # 8 MiB
INPUTS = make_inputs(LARGE)


def scan(problem: ScanProblem = LARGE) -> ScanOutput:
    return native.backend.build(problem)(*(INPUTS if problem is LARGE else make_inputs(problem)))


def lazily_free_bytes() -> int:
    """Return the bytes of this process that the system may reclaim at any time."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("LazyFree:")) * 1024


def test_free_memory_is_used_again_and_memory_in_use_is_not():
    first = scan().out
    place, want = first.data_ptr(), first.clone()
    second = scan().out
    assert second.data_ptr() != place
    del first
    third = scan().out
    assert third.data_ptr() == place
    assert torch.equal(second, want)
    assert torch.equal(third, want)


def test_a_shorter_output_fits_into_the_place_of_a_longer_one_and_one_of_half_the_length_does_not():
    alive = [scan().out for _ in range(4)]
    places = {out.data_ptr() for out in alive}
    alive.clear()
    assert scan(LARGE.replace(length=LARGE.length - 5)).out.data_ptr() in places
    assert scan(LARGE.replace(length=LARGE.length // 2)).out.data_ptr() not in places


def test_free_memory_is_offered_to_the_system():
    out = scan().out
    before = lazily_free_bytes()
    size = out.nbytes
    del out
    assert lazily_free_bytes() >= before + size // 2


def test_an_output_can_be_shared_and_saved():
    out = scan().out
    want = out.clone()
    saved = io.BytesIO()
    torch.save(out, saved)
    saved.seek(0)
    assert torch.equal(torch.load(saved), want)
    assert torch.equal(out.share_memory_(), want)
    assert out.is_shared()


@pytest.mark.parametrize("layout", ["dim_last", "length_last"])
@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_the_strides_of_outputs_are_those_of_empty_like(axes, layout):
    problem = ScanProblem(batch=3, dim=8, length=6, layout=layout)
    (inputs,) = make_inputs(problem)
    for u in (
        inputs.u.permute(axes).contiguous().permute([axes.index(axis) for axis in range(3)]),
        inputs.u.repeat(1, 2, 1)[:, ::2],
        inputs.u[:1].expand(3, -1, -1),
        inputs.u[:, :1].expand(-1, 8, -1),
        inputs.u[:, :, :1].expand(-1, -1, 6),
    ):
        assert native.backend.build(problem)(inputs._replace(u=u)).out.stride() == torch.empty_like(u).stride()


def test_gradients_lie_apart():
    problem = LARGE.replace(gradients=True)
    inputs = ScanInputs(**{name: tensor.requires_grad_() for name, tensor in make_inputs(problem)[0].tensors().items()})
    scanned = native.backend.build(problem)(inputs).out
    gradients = torch.autograd.grad(scanned.sum(), (inputs.u, inputs.delta, inputs.z))
    assert len({tensor.data_ptr() for tensor in (scanned, *gradients)}) == 4


def test_a_child_of_a_fork_scans_on():
    want = scan().out[0, 0, -1].item()
    child = os.fork()
    if child == 0:
        os._exit(0 if scan().out[0, 0, -1].item() == want else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
