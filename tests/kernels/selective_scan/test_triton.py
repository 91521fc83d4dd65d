"""The Triton backend on a machine without a GPU: why it cannot run, what it refuses, its kernels interpreted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scanlab.contract import registry
from scanlab.contract.problem import ScanInputs, ScanProblem, make_inputs
from scanlab.errors import ConfigError, RejectedError, UnavailableError
from scanlab_kernels.gpu import version
from scanlab_kernels.selective_scan.triton import backend as triton

PROBLEM = ScanProblem(batch=1, dim=4, length=8, device="cuda")


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, r"is not installed; on Linux run `pip install 'scanlab\[gpu\]'`"),
        ((3, 4, 0), "3.4.0 is older than 3.5"),
        ((3, 6, 0), "sees no GPU"),
    ],
)
def test_says_why_it_cannot_run(monkeypatch, found, reason):
    monkeypatch.setattr(version, "installed", lambda: found)
    monkeypatch.setattr(triton.torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnavailableError, match=reason):
        registry.get("triton").build(PROBLEM)


def test_runs_where_torch_sees_a_gpu_and_triton_is_new_enough(monkeypatch):
    monkeypatch.setattr(version, "installed", lambda: (3, 6, 0))
    monkeypatch.setattr(triton.torch.cuda, "is_available", lambda: True)
    assert triton.unavailable() is None
    monkeypatch.setattr(triton.torch.version, "hip", "6.4")
    assert "built for ROCm; choose another" in triton.unavailable()


def test_names_what_a_version_of_triton_lacks(monkeypatch):
    monkeypatch.setattr(version, "installed", lambda: (4, 0, 0))
    assert version.inside(PROBLEM, "batch", "") == 1
    lacks = r"triton 4\.0\.0 has no _gone, which 3\.5\.1, .* have; install one of these, or do without\."
    with pytest.raises(UnavailableError, match=lacks):
        version.inside(PROBLEM, "_gone", "do without")


def test_rejects_the_cpu():
    assert triton.backend.rejects(PROBLEM.replace(device="cpu")) == "device cpu: it has cuda"


@pytest.mark.parametrize(
    ("config", "gradients", "reason"),
    [
        ({"unroll": 8, "chunk": 4}, True, "unroll is at most chunk"),
        ({"history": 4, "chunk": 2, "unroll": 1}, True, "history is at most chunk"),
        ({"polynomial": 2, "unroll": 1}, False, "polynomial is at most unroll"),
        ({"chunk": 8}, False, "chunk is for gradients"),
    ],
)
def test_combinations_that_mean_nothing_are_refused(config, gradients, reason):
    with pytest.raises(ConfigError, match=reason):
        triton.backend.space.complete(config, PROBLEM.replace(gradients=gradients), "triton")


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"dim": 4096, "length": 262145}, "dim x length is 1073745920, and its kernels count to 1073741824"),
        ({"dim": 1, "length": 2**24, "state": 65}, "state x length is 1090519040"),
        ({"dim": 2**20, "length": 2, "state": 128, "gradients": True}, "dim x state x states of a chunk is 2147483648"),
    ],
)
def test_refuses_offsets_beyond_32_bits(shape, reason):
    with pytest.raises(RejectedError, match=reason):
        triton.make(PROBLEM.replace(**shape), triton.backend.space.defaults)


def test_refuses_what_an_old_triton_does_not_compile(monkeypatch):
    pytest.importorskip("triton", reason="the package triton is not installed")
    bare = PROBLEM.replace(has_D=False, has_z=False)
    monkeypatch.setattr(version, "installed", lambda: (3, 5, 1))
    with pytest.raises(RejectedError, match=r"before 3\.6 Triton does not compile a scan without D, z; install"):
        triton.make(bare, triton.backend.space.defaults)
    assert callable(triton.make(PROBLEM, triton.backend.space.defaults))
    monkeypatch.setattr(version, "installed", lambda: (3, 6, 0))
    assert callable(triton.make(bare, triton.backend.space.defaults))


def test_a_gate_whose_offsets_exceed_32_bits_is_copied():
    pytest.importorskip("triton", reason="the package triton is not installed")
    from scanlab_kernels.selective_scan.triton import launch

    tensor = torch.empty(1, 4, 2**12, device="meta")
    inputs = ScanInputs(tensor, tensor, tensor[0, :, :2], tensor[:, :2], tensor[:, :2])
    for over_time, copied in ((2**19, ()), (2**20, ("z",))):
        z = torch.empty_strided((1, 4, 2**12), (4, 1, over_time), device="meta")
        assert launch.to_copy((inputs._replace(A=torch.empty(4, 2, device="meta"), z=z),)) == (copied,)


def test_tensors_are_copied_only_where_their_strides_matter():
    pytest.importorskip("triton", reason="the package triton is not installed")
    from scanlab_kernels.selective_scan.triton.launch import dense_strides, with_strides

    row = torch.arange(48.0).view(2, 4, 6)[:1]
    assert with_strides(row[:, :2], dense_strides(row[:, :2])).data_ptr() == row.data_ptr()
    copy = with_strides(row[..., :3], dense_strides(row[..., :3]))
    assert copy.is_contiguous()
    assert torch.equal(copy, row[..., :3])


@pytest.mark.parametrize(
    ("batch", "width", "start", "dtype", "row"),
    [
        (2, 44, 12, torch.float32, 44),
        (2, 32, 0, torch.float32, 32),
        (2, 43, 12, torch.float32, None),  # rows that are not 16 bytes apart
        (2, 44, 11, torch.float32, None),  # or do not begin so
        (2, 44, 12, torch.bfloat16, None),
        (None, 44, 12, torch.float32, None),  # batch entries that do not follow each other
    ],
)
def test_projections_are_read_in_place_where_four_are_loaded_at_once(batch, width, start, dtype, row):
    pytest.importorskip("triton", reason="the package triton is not installed")
    from scanlab_kernels.selective_scan.triton.launch import row_in_place

    rows = torch.randn(4, 5, width)[:: 2 if batch is None else 1].to(dtype)
    (like,) = make_inputs(PROBLEM.replace(batch=len(rows), length=5, device="cpu"))
    given = like._replace(B=rows[..., start : start + 16].mT, C=rows[..., start + 16 : start + 32].mT)
    assert row_in_place((given,)) == row
    assert row_in_place((given, given._replace(C=rows[..., :16].mT.contiguous()))) is None


def test_imports_nothing_of_the_package_triton():
    code = "import sys, scanlab_kernels.selective_scan.triton.backend; print('triton' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.slow
def test_agrees_with_the_reference_in_the_interpreter():
    """Triton decides when it is imported whether it interprets: a process of its own, whose tests must all have run."""
    pytest.importorskip("triton", reason="the package triton is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    tests = Path(__file__).with_name("interpreter")
    done = subprocess.run(
        [*command, tests], capture_output=True, text=True, check=False, env=os.environ | {"TRITON_INTERPRET": "1"}
    )
    summary = done.stdout.splitlines()[-1]
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.match(r"\d{3} passed", summary), summary
    assert "skipped" not in summary


GPU = ScanProblem(batch=64, dim=384, length=197, direction="bidirectional", layout="dim_last", device="cuda")


@pytest.mark.parametrize(
    ("shape", "segments", "backward_segments"),
    [
        ({"batch": 64, "length": 197}, 1, 1),
        ({"batch": 1, "length": 197}, 4, 4),
        ({"batch": 1, "length": 6085}, 32, 32),
        ({"batch": 8, "length": 6085}, 8, 4),
        ({"batch": 8, "length": 6085, "dim": 1536}, 2, 1),
        ({"batch": 1, "length": 65536}, 64, 32),
        ({"batch": 1, "length": 1}, 1, 1),
    ],
    ids=str,
)
def test_a_scan_is_cut_where_the_gpu_has_too_little_to_do(shape, segments, backward_segments):
    pytest.importorskip("triton", reason="the package triton is not installed")
    problem = GPU.replace(gradients=True, **shape)
    config = triton.with_segments(triton.backend.space.defaults, problem)
    assert (config["segments"], config["backward_segments"]) == (segments, backward_segments)
    asked = triton.with_segments(triton.backend.space.defaults | {"segments": 2, "backward_segments": 8}, problem)
    assert (asked["segments"], asked["backward_segments"]) == (2, 8)
