"""Machine code of the Triton kernels, compiled for a GPU on a machine without one."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

from scanlab.contract.problem import ScanProblem
from scanlab_kernels.gpu import version
from scanlab_kernels.selective_scan.triton import backend as triton

GPU = ScanProblem(batch=64, dim=768, length=197, direction="bidirectional", layout="dim_last", device="cuda")
HOPPER = 90
# Instructions of a state update at most, by version; the special-function unit binds below 9.0 in all of them.
PINNED = (3, 6)
COUNTED = {(3, 5): 8.8, (3, 6): 8.0, (3, 7): 8.0, (3, 9): 8.5}
OTHER = {"channels": 2, "unroll": 2}  # as a search may find
IN_ROWS = {44: 384, 56: 768, 80: 1536}  # numbers of a projection's output in Vim-tiny, Vim-small and Mamba-130m: dim


@pytest.fixture
def sass(monkeypatch):
    """The module of the experiments that compiles and counts."""
    pytest.importorskip("triton", reason="the package triton is not installed")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "experiments"))
    return importlib.import_module("gpu_sass")


@pytest.fixture
def code(sass):
    """The same, where the layouts of the installed Triton were counted."""
    if version.installed()[:2] not in COUNTED:
        pytest.skip(f"nothing was counted with triton {version.installed()}, but with {tuple(COUNTED)}")
    return sass


def tuned(problem=GPU, **config):
    from scanlab_kernels.selective_scan.triton.launch import Tuning

    return Tuning(*triton.tuning_of(triton.backend.space.defaults | config, problem))


@pytest.mark.parametrize("config", [{}, OTHER], ids=str)
@pytest.mark.parametrize("row", IN_ROWS)
@pytest.mark.parametrize("gradients", [False, True])
def test_the_forward_loop_issues_less_than_the_special_unit_takes(code, row, gradients, config):
    problem = GPU.replace(dim=IN_ROWS[row], gradients=gradients)
    assert code.forward_calls(problem, tuned(problem, **config))[-1].arguments["tile"].row == row
    made = code.forward(problem, tuned(problem, **config), HOPPER)[-1]
    binds(made, spills=16 if gradients else 4)  # of values that a program needs once
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
    binds(made, spills=4)


def binds(made, spills):
    """Assert that the special-function unit limits a forward loop, and that its threads exchange nothing."""
    major, minor = version.installed()[:2]
    found = (major, minor)
    assert made.instructions <= COUNTED[found]
    assert made.loop_spills == 0
    assert made.spills <= spills or found != PINNED
    assert made.loop["SHFL"] == 0 or found < PINNED
    assert made.special == pytest.approx(18 / 16)  # one for each of 16 states, one for softplus, one for the gate
    assert made.clocks == pytest.approx(9.0)


@pytest.mark.parametrize(("config", "instructions"), [({}, 30), ({"history": 1}, 33.5)], ids=str)
@pytest.mark.parametrize("row", IN_ROWS)
def test_the_loops_of_the_backward_pass_do_not_spill(code, row, config, instructions):
    problem = GPU.replace(dim=IN_ROWS[row], gradients=True)
    (made,) = code.backward(problem, tuned(problem, **config), HOPPER)
    assert made.loop_spills == 0
    assert made.spills <= 16
    assert made.instructions <= instructions


def test_the_first_passes_of_segments_cost_little_and_do_not_spill(code):
    problem = GPU.replace(batch=1, dim=384, length=6085, gradients=True)
    config = tuned(problem)
    assert config.segments == config.backward_segments == 32
    first, whole = code.forward(problem, config, HOPPER)
    assert first.spills == whole.loop_spills == 0
    assert first.instructions < 0.75 * whole.instructions
    adjoint, back = code.backward(problem, config, HOPPER)
    assert adjoint.spills == back.loop_spills == 0
    assert adjoint.loop["SHFL"] == 0
    assert adjoint.instructions <= 6.5 < back.instructions / 3
    assert adjoint.clocks == pytest.approx(9.0)


def block_calls(sass) -> dict[str, object]:
    """Every kernel of a Mamba block beside the scan as Vim-small launches it in bfloat16, with tensors without data."""
    from scanlab_kernels.add_norm import triton as add_norm
    from scanlab_kernels.causal_conv1d.triton import ops as conv
    from scanlab_kernels.state_update import triton as state_update

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    dtype = torch.bfloat16
    x, hidden, residual = empty(64, 197, 768, dtype=dtype).mT, empty(64, 197, 384, dtype=dtype), empty(64, 197, 384)
    taps, vector, token, matrix = empty(768, 4), empty(768), empty(64, 768, dtype=dtype), empty(768, 16)
    ids, weights, options = empty(64, 197, dtype=torch.int32), (empty(384), empty(384)), (1e-5, True)
    both, projected = (taps, vector, taps, vector), empty(64, 16, dtype=dtype)
    with sass.captured() as calls:
        conv.causal_conv1d(x, *both, None, None, True)
        conv.causal_conv1d_backward(x, x, x, *both, None, None, True)
        conv.causal_conv1d_backward(x, None, x, taps, vector, None, None, ids, None, True)
        add_norm.add_norm(hidden, residual, *weights, *options, True)
        add_norm.add_norm_backward(hidden, residual, residual, weights[0], *options)
        conv.causal_conv1d_update(token, empty(64, 768, 4, dtype=dtype), taps, vector, None, None, True)
        step = (token, token, -matrix, projected, projected, vector, token, vector, True, None, True)
        state_update.selective_state_update(empty(64, 768, 16), *step)
    names = (
        "conv",
        "conv_backward",
        "conv_backward, packed",
        "add_norm",
        "add_norm_backward",
        "conv_step",
        "scan_step",
    )
    return dict(zip(names, calls, strict=True))


def test_the_kernels_of_a_block_do_not_spill(code):
    made = {name: code.compiled(call, HOPPER) for name, call in block_calls(code).items()}
    assert {name: each.spills for name, each in made.items()} == dict.fromkeys(made, 0)
    assert made["conv"].registers <= 80  # so that 24 warps fit on a multiprocessor at once, and the loads of all


def test_poor_code_is_refused_with_numbers(code):
    default = tuned()
    assert code.refusal(GPU, default, default, HOPPER) is None
    spilling = code.refusal(GPU, tuned(channels=4, unroll=4, registers=96), default, HOPPER)
    assert re.search(r"loops of its forward kernel spill: \d+ moves", spilling or "")
    slow = code.refusal(GPU, tuned(lanes=8), default, HOPPER)
    assert re.search(r"needs \d\d\.\d clocks for a state update .* the default 9\.0", slow or "")


def test_loops_are_found_in_a_listing(sass):
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
    names, loops = sass.disassembled(listing)
    assert names == ["MOV", "LDG", "FFMA", "BRA", "STL", "BRA", "BRA"]
    assert loops == [(1, 4)]
