"""The official scan by each of its names: goldens of the official code, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers import golden_ops
from helpers.closeness import close
from scanlab.contract import registry
from scanlab.contract.problem import ScanInputs, ScanProblem, make_inputs
from scanlab.errors import ProblemError
from scanlab.integrations.mamba_ssm import cuda_extensions as extensions
from scanlab.integrations.mamba_ssm import manifest
from scanlab.integrations.mamba_ssm.ops import selective_scan_interface as scan
from scanlab.integrations.mamba_ssm.ops.triton.selective_state_update import selective_state_update_ref
from scanlab.runtime import dispatch
from scanlab.runtime.ops import selective_state_update

pytestmark = pytest.mark.usefixtures("two_phase_scan")

REAL = [name for name, case in golden_ops.CASES.items() if case["grads"]]


@pytest.mark.parametrize("name", REAL)
def test_the_scan_and_its_gradients_are_the_official_ones(name):
    given, gradient = golden_ops.inputs(name, torch.float32)
    leaves = ScanInputs(**{key: value.requires_grad_() for key, value in given.tensors().items()})
    out, last = scan.selective_scan_fn(*leaves[:-1], golden_ops.CASES[name]["softplus"], return_last_state=True)
    found = dict(
        zip(leaves.tensors(), torch.autograd.grad(out, list(leaves.tensors().values()), gradient), strict=True)
    )
    close(last, torch.from_numpy(golden_ops.VALUES[f"{name}/last_state"]))
    for key, value in found.items():
        close(value, torch.from_numpy(golden_ops.VALUES[f"{name}/d{key}"]), key)


@pytest.mark.parametrize("name", REAL)
def test_the_compiled_module_is_called_as_the_official_wrapper_calls_it(name):
    """fwd and bwd by position, B and C with an axis for groups, dz into a tensor that is given."""
    inputs, gradient = golden_ops.inputs(name, torch.float32)
    softplus = golden_ops.CASES[name]["softplus"]
    u, delta, A, B, C, D, z, bias, _ = inputs
    B, C = (each[:, None] if each.dim() == 3 else each for each in (B, C))
    out, x, *rest = extensions.fwd(u, delta, A, B, C, D, z, bias, softplus)
    stored = golden_ops.VALUES
    close(x[:, :, -1, 1::2], torch.from_numpy(stored[f"{name}/last_state"]))
    out_z = rest[0] if z is not None else out
    step = golden_ops.CASES[name]["out_sub_step"]
    close(out_z[:, ::step], torch.from_numpy(stored[f"{name}/{'out' if step is None else 'out_sub'}"]))
    dz = None if z is None else torch.empty_like(torch.cat((z, z), 1))[:, z.shape[1] :]
    found = extensions.bwd(u, delta, A, B, C, D, z, bias, gradient, x, out, dz, softplus, True)
    assert len(found) == (7 if z is None else 9)
    for key, value in zip(("u", "delta", "A", "B", "C", "D", "delta_bias"), found, strict=False):
        if value is None:
            assert getattr(inputs, key) is None
        else:
            expected = torch.from_numpy(stored[f"{name}/d{key}"])
            close(value.reshape(expected.shape), expected, key)
    if dz is not None:
        assert found[7] is dz
        close(dz, torch.from_numpy(stored[f"{name}/dz"]))
        close(found[8], out_z)


def test_half_precision_is_rounded_once():
    u, delta, A, B, C, D, z, bias, _ = make_inputs(ScanProblem(batch=2, dim=6, length=30, dtype="bfloat16"))[0]
    out, x, out_z = extensions.fwd(u, delta, A, B, C, D, z, bias, True)
    assert (out.dtype, x.dtype, out_z.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    exact: Any = [each.double() for each in (u, delta, A, B, C, D, z, bias)]
    expected = scan.selective_scan_fn(*exact, delta_softplus=True)
    assert torch.equal(out_z, expected.bfloat16())


def test_the_plain_state_update_is_the_same():
    draw = torch.Generator().manual_seed(0)
    x, dt, z = (torch.randn(2, 5, generator=draw) for _ in range(3))
    A, B, C = -torch.rand(5, 3, generator=draw), torch.rand(2, 3, generator=draw), torch.rand(2, 3, generator=draw)
    one, other = torch.ones(2, 5, 3), torch.ones(2, 5, 3)
    arguments = (x, dt, A, B, C, torch.ones(5), z, torch.zeros(5), True)
    close(selective_state_update_ref(one, *arguments), selective_state_update(other, *arguments))
    close(one, other)


def test_the_reference_is_the_reference():
    inputs = make_inputs(ScanProblem(batch=1, dim=4, length=5, state=3))[0]
    expected = registry.get("reference").build(ScanProblem(batch=1, dim=4, length=5, state=3))(inputs).out
    out: Any = scan.selective_scan_ref(*inputs[:-1], delta_softplus=True)
    assert torch.equal(out, expected)
    assert "reference" in dispatch.explain()


@pytest.mark.parametrize(
    ("module", "name", "function"),
    [
        ("mamba_ssm.ops.selective_scan_interface", "SelectiveScanFn", "selective_scan_fn"),
        ("mamba_ssm.ops.selective_scan_interface", "MambaInnerFn", "mamba_inner_fn"),
        ("mamba_ssm.ops.triton.ssd_combined", "MambaChunkScanCombinedFn", "mamba_chunk_scan_combined"),
        ("causal_conv1d.causal_conv1d_interface", "CausalConv1dFn", "causal_conv1d_fn"),
    ],
)
def test_autograd_functions_answer_to_their_names(module, name, function):
    served = manifest.served(module)
    assert served[name].apply is served[function]


@pytest.mark.parametrize("inner", [scan.mamba_inner_fn, scan.bimamba_inner_fn])
def test_an_output_projection_that_is_no_matrix_is_refused(inner):
    rates = [-torch.ones(6, 2)] * (1 + (inner is scan.bimamba_inner_fn))
    weights = torch.ones(6, 1, 4), None, torch.ones(5, 6), torch.ones(6, 1)
    with pytest.raises(ProblemError, match="out_proj_weight is"):
        inner(torch.ones(1, 12, 5), *weights, torch.ones(6), None, *rates)
