"""The GPU backend where no GPU is: why it cannot run, its proof in the interpreter, its machine code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scanlab.contract import registry
from scanlab.contract.problem import ScanProblem, make_inputs
from scanlab.errors import ConfigError, RejectedError, UnavailableError
from scanlab_kernels.gpu import version as triton_version
from scanlab_kernels.selective_scan.triton import backend as triton

PROBLEM = ScanProblem(batch=1, dim=4, length=8, device="cuda")


@pytest.mark.parametrize(
    ("version", "reason"),
    [(None, "not installed; install scanlab"), ((3, 4, 0), "3.4.0 is older than 3.5"), ((3, 6, 0), "sees no GPU")],
)
def test_says_why_it_cannot_run(monkeypatch, version, reason):
    monkeypatch.setattr(triton_version, "installed", lambda: version)
    monkeypatch.setattr(triton.torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnavailableError, match=reason):
        registry.get("triton").build(PROBLEM)


def test_runs_where_torch_sees_a_gpu_and_triton_is_new_enough(monkeypatch):
    monkeypatch.setattr(triton_version, "installed", lambda: (3, 6, 0))
    monkeypatch.setattr(triton.torch.cuda, "is_available", lambda: True)
    assert triton.unavailable() is None
    monkeypatch.setattr(triton.torch.version, "hip", "6.4")
    assert "built for ROCm; choose another" in triton.unavailable()


def test_names_what_a_version_of_triton_lacks(monkeypatch):
    monkeypatch.setattr(triton_version, "installed", lambda: (4, 0, 0))
    assert triton_version.inside(PROBLEM, "batch", "") == 1
    lacks = r"triton 4\.0\.0 has no _gone, which 3\.5\.1, .* have; install one of these, or do without\."
    with pytest.raises(UnavailableError, match=lacks):
        triton_version.inside(PROBLEM, "_gone", "do without")


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
    monkeypatch.setattr(triton, "refuse_poor_code", lambda problem, chosen: None)
    pytest.importorskip("triton", reason="the package triton is not installed")
    bare = PROBLEM.replace(has_D=False, has_z=False)
    monkeypatch.setattr(triton_version, "installed", lambda: (3, 5, 1))
    with pytest.raises(RejectedError, match=r"before 3\.6 Triton does not compile a scan without D, z; install"):
        triton.make(bare, triton.backend.space.defaults)
    assert callable(triton.make(PROBLEM, triton.backend.space.defaults))
    monkeypatch.setattr(triton_version, "installed", lambda: (3, 6, 0))
    assert callable(triton.make(bare, triton.backend.space.defaults))


def test_a_gate_that_lies_too_far_apart_is_brought_together():
    pytest.importorskip("triton", reason="the package triton is not installed")
    from scanlab_kernels.selective_scan.triton import launch as triton_launch
    from scanlab_kernels.selective_scan.triton import machine_code as triton_compile

    (inputs,) = triton_compile.task(PROBLEM.replace(length=2**12), tuned(PROBLEM)).directions
    for over_time, copied in ((2**19, False), (2**20, True)):
        z = torch.empty_strided((1, 4, 2**12), (4, 1, over_time), device="meta")
        (found,) = triton_launch.task((inputs._replace(z=z),), True, False, tuned(PROBLEM)).directions
        assert (found.z is not z) == copied
        assert triton_launch.reach(found.z) < 2**31


def test_tensors_are_copied_only_where_their_strides_matter():
    pytest.importorskip("triton", reason="the package triton is not installed")
    from scanlab_kernels.selective_scan.triton.launch import dense, dense_strides

    row = torch.arange(48.0).view(2, 4, 6)[:1]
    assert dense(row[:, :2], dense_strides(row[:, :2])).data_ptr() == row.data_ptr()
    copy = dense(row[..., :3], dense_strides(row[..., :3]))
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
    from scanlab_kernels.selective_scan.triton.launch import row_in_place, task

    rows = torch.randn(4, 5, width)[:: 2 if batch is None else 1].to(dtype)
    (like,) = make_inputs(PROBLEM.replace(batch=len(rows), length=5, device="cpu"))
    given = like._replace(B=rows[..., start : start + 16].mT, C=rows[..., start + 16 : start + 32].mT)
    assert row_in_place((given,)) == row
    assert row_in_place((given, given._replace(C=rows[..., :16].mT.contiguous()))) is None
    asked = task((given,), True, False, tuned(PROBLEM))
    assert (asked.gather is None, asked.row) == ((True, row) if row else (False, 16))


def test_imports_nothing_of_the_package_triton():
    code = "import sys, scanlab_kernels.selective_scan.triton.backend; print('triton' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_agrees_with_the_oracle_in_the_interpreter():
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


GPU = ScanProblem(batch=64, dim=768, length=197, direction="bidirectional", layout="dim_last", device="cuda")
HOPPER = 90
# Instructions of a state update at most, by version; the special-function unit binds below 9.0 in all of them.
PINNED = (3, 6)
COUNTED = {(3, 5): 8.8, (3, 6): 8.0, (3, 7): 8.0, (3, 9): 8.5}
OTHER = {"channels": 2, "unroll": 2}  # as a search may find
IN_ROWS = {44: 384, 56: 768, 80: 1536}  # numbers of a projection's output in Vim-tiny, Vim-small and Mamba-130m: dim


@pytest.fixture
def code():
    """The compiler of `triton_compile`, with which layouts depend on the version of Triton."""
    pytest.importorskip("triton", reason="the package triton is not installed")
    if triton_version.installed()[:2] not in COUNTED:
        pytest.skip(f"nothing was counted with triton {triton_version.installed()}, but with {tuple(COUNTED)}")
    from scanlab_kernels.selective_scan.triton import machine_code as triton_compile

    return triton_compile


def tuned(problem=GPU, **config):
    from scanlab_kernels.selective_scan.triton.launch import Tuning

    return Tuning(*triton.tuning(triton.settled(triton.backend.space.defaults | config, problem)))


@pytest.mark.parametrize("config", [{}, OTHER], ids=str)
@pytest.mark.parametrize("row", IN_ROWS)
@pytest.mark.parametrize("gradients", [False, True])
def test_the_forward_loop_issues_less_than_the_special_unit_takes(code, row, gradients, config):
    problem = GPU.replace(dim=IN_ROWS[row], gradients=gradients)
    assert code.task(problem, tuned(problem, **config)).row == row
    made = code.forward(problem, tuned(problem, **config), HOPPER)[-1]
    binds(made, spills=16 if gradients else 0)  # of what a program needs once
    assert made.registers <= (138 if not config else 255 if gradients else 168)


@pytest.mark.parametrize(
    ("asked", "config"),
    [
        ({"direction": "forward"}, {}),
        ({"direction": "reverse"}, {}),
        ({"layout": "length_last"}, {}),
        ({"dtype": "bfloat16"}, OTHER),
        ({"dtype": "float16"}, OTHER),
    ],
    ids=str,
)
def test_so_do_those_of_other_directions_layouts_and_dtypes(code, asked, config):
    (made,) = code.forward(GPU.replace(**asked), tuned(**config), HOPPER)
    binds(made, spills=0)


def binds(made, spills):
    """The special-function unit is all that a forward loop waits for, and no thread for another; spills beside it."""
    version = triton_version.installed()[:2]
    assert made.instructions <= COUNTED[version]
    assert made.loop_spills == 0
    assert made.spills <= spills or version != PINNED
    assert made.loop["SHFL"] == 0 or version < PINNED
    assert made.special == pytest.approx(18 / 16)  # one for each of 16 states, one for softplus, one for the gate
    assert made.clocks == pytest.approx(9.0)


@pytest.mark.parametrize(("config", "instructions"), [({}, 30), ({"history": 1}, 33.5)], ids=str)
@pytest.mark.parametrize("row", IN_ROWS)
def test_the_loops_of_the_way_back_do_not_spill(code, row, config, instructions):
    problem = GPU.replace(dim=IN_ROWS[row], gradients=True)
    (made,) = code.backward(problem, tuned(problem, **config), HOPPER)
    assert made.loop_spills == 0
    assert made.spills <= 16
    assert made.instructions <= instructions


def test_the_first_passes_of_segments_cost_little_and_do_not_spill(code):
    problem = GPU.replace(batch=1, dim=384, length=6085, gradients=True)
    config = tuned(problem)
    assert config.segments == config.back_segments == 32
    first, whole = code.forward(problem, config, HOPPER)
    assert first.spills == whole.loop_spills == 0
    assert first.instructions < 0.75 * whole.instructions
    adjoint, back = code.backward(problem, config, HOPPER)
    assert adjoint.spills == back.loop_spills == 0
    assert adjoint.loop["SHFL"] == 0
    assert adjoint.instructions <= 6.5 < back.instructions / 3
    assert adjoint.clocks == pytest.approx(9.0)


@pytest.mark.parametrize(
    ("shape", "segments", "back_segments"),
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
def test_a_scan_is_cut_where_the_gpu_has_too_little_to_do(shape, segments, back_segments):
    pytest.importorskip("triton", reason="the package triton is not installed")
    problem = GPU.replace(dim=384, gradients=True).replace(**shape)
    config = triton.settled(triton.backend.space.defaults, problem)
    assert (config["segments"], config["back_segments"]) == (segments, back_segments)
    asked = triton.settled(triton.backend.space.defaults | {"segments": 2, "back_segments": 8}, problem)
    assert (asked["segments"], asked["back_segments"]) == (2, 8)


def mixer_launches() -> dict[str, object]:
    """Every kernel of the mixer as Vim-small launches it in bfloat16, with tensors that hold nothing."""
    from scanlab_kernels.add_norm import triton as triton_add_norm
    from scanlab_kernels.causal_conv1d import triton_backward as triton_causal_conv1d_backward
    from scanlab_kernels.causal_conv1d import triton_forward as triton_causal_conv1d
    from scanlab_kernels.causal_conv1d import triton_tile as triton_causal_conv1d_tile
    from scanlab_kernels.causal_conv1d import triton_update as triton_causal_conv1d_update
    from scanlab_kernels.state_update import triton as triton_selective_state_update

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    dtype = torch.bfloat16
    x, hidden, residual = empty(64, 197, 768, dtype=dtype).mT, empty(64, 197, 384, dtype=dtype), empty(64, 197, 384)
    taps, vector, token, matrix = empty(768, 4), empty(768), empty(64, 768, dtype=dtype), empty(768, 16)
    sequence = triton_causal_conv1d_tile.sequence(x, None, None, reverse=False)
    packed = triton_causal_conv1d_tile.sequence(x, empty(64, 197, dtype=torch.int32), None, reverse=False)
    sums = triton_causal_conv1d_backward.empty_sums(sequence, taps)
    way = triton_causal_conv1d_tile.way(taps, vector, x, sums)
    weights, options = (empty(384), empty(384)), {"eps": 1e-5, "centred": True}
    projected = empty(64, 16, dtype=dtype)
    step = (token, token, -matrix, projected, projected, vector, token, vector, True, None, True, token)
    return {
        "conv": triton_causal_conv1d.forward(sequence, way, way, True),
        "conv_backward": triton_causal_conv1d_backward.backward(sequence, way, way, True)[0],
        "conv_backward, packed": triton_causal_conv1d_backward.backward(packed, way, None, True)[0],
        "add_norm": triton_add_norm.forward(hidden, residual, *weights, **options, out=hidden, total=residual),
        "add_norm_backward": triton_add_norm.backward(hidden, residual, residual, weights[0], **options, grad=residual)[
            0
        ],
        "conv_step": triton_causal_conv1d_update.step(
            token, empty(64, 768, 4, dtype=dtype), taps, vector, None, None, True, token
        ),
        "scan_step": triton_selective_state_update.step(empty(64, 768, 16), *step),
    }


def test_the_kernels_of_the_mixer_do_not_spill(code):
    made = {name: code.compiled(launch, HOPPER) for name, launch in mixer_launches().items()}
    assert {name: each.spills for name, each in made.items()} == dict.fromkeys(made, 0)
    assert made["conv"].registers <= 80  # so that 24 warps fit on a multiprocessor at once, and the loads of all


def test_poor_code_is_refused_with_numbers(code):
    default = tuned()
    assert code.refusal(GPU, default, default, HOPPER) is None
    spilling = code.refusal(GPU, tuned(channels=4, unroll=4, registers=96), default, HOPPER)
    assert re.search(r"loops of its forward kernel spill: \d+ moves", spilling or "")
    slow = code.refusal(GPU, tuned(lanes=8), default, HOPPER)
    assert re.search(r"needs \d\d\.\d clocks for a state update .* the default 9\.0", slow or "")


def test_building_refuses_poor_code(code, monkeypatch):
    monkeypatch.setattr(triton, "unavailable", lambda: None)
    monkeypatch.setattr(triton.torch.cuda, "get_device_capability", lambda: (9, 0))
    with pytest.raises(RejectedError, match=r"needs \d\d\.\d clocks"):
        triton.make(GPU, triton.backend.space.defaults | {"lanes": 8})


def test_loops_are_found_in_a_listing():
    pytest.importorskip("triton", reason="the package triton is not installed")
    from scanlab_kernels.selective_scan.triton import machine_code as triton_compile

    listing = """
    .L_x_0:
            /*0000*/                   MOV R1, c[0x0][0x28] ;
    .L_x_1:
            /*0010*/              @!P0 LDG.E R2, [R2.64] ;
            /*0020*/                   FFMA R1, R1, R2, R3 ;
            /*0030*/               @P0 BRA `(.L_x_1) ;
            /*0040*/                   STL [R1], R4 ;
            /*0050*/               @P1 BRA `(.L_x_0) ;
    .L_x_2:
            /*0060*/                   BRA `(.L_x_2) ;
    """
    names, loops = triton_compile.disassembled(listing)
    assert names == ["MOV", "LDG", "FFMA", "BRA", "STL", "BRA", "BRA"]
    assert loops == [(1, 4)]
