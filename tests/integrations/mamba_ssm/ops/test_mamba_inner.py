"""The official fused mixers against their definition, step by step in float64, with every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.closeness import close
from scanlab.contract.verify import relative_error
from scanlab.errors import ProblemError
from scanlab.integrations.mamba_ssm.ops import selective_scan_interface as scan

pytestmark = pytest.mark.usefixtures("two_phase_scan")

SIZES = {"batch": 2, "dim": 6, "length": 9, "state": 4, "rank": 3, "features": 5}


def inner_arguments(seed: int = 0, **options: bool) -> dict[str, Any]:
    """Arguments of mamba_inner_fn in float64: constant B or C, complex A, biases and norms as asked for."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    batch, dim, length, state, rank, features = SIZES.values()
    width = state * (2 if options.get("complex_A") else 1)
    columns = rank + width * (not options.get("constant_B")) + width * (not options.get("constant_C"))
    rates = -torch.rand(dim, state, generator=draw, dtype=torch.float64)

    def constant() -> Tensor:
        return torch.complex(normal(dim, state), normal(dim, state)) if options.get("complex_A") else normal(dim, state)

    return {
        "xz": normal(batch, 2 * dim, length),
        "conv1d_weight": normal(dim, 1, 4),
        "conv1d_bias": normal(dim),
        "x_proj_weight": normal(columns, dim) / 3,
        "delta_proj_weight": normal(dim, rank) / 3,
        "out_proj_weight": normal(features, dim),
        "out_proj_bias": normal(features),
        "A": torch.complex(rates, normal(dim, state)) if options.get("complex_A") else rates,
        "B": constant() if options.get("constant_B") else None,
        "C": constant() if options.get("constant_C") else None,
        "D": normal(dim),
        "delta_bias": normal(dim) - 2,
        "B_proj_bias": normal(width) if options.get("biases") else None,
        "C_proj_bias": normal(width) if options.get("biases") else None,
        "b_rms_weight": normal(state) if options.get("normed") else None,
        "c_rms_weight": normal(state) if options.get("normed") else None,
        "dt_rms_weight": normal(dim) if options.get("normed") else None,
    }


def convolved(xz: Tensor, conv1d_weight: Tensor, conv1d_bias: Tensor) -> tuple[Tensor, Tensor]:
    """The convolved x and z."""
    x, z = xz.chunk(2, dim=1)
    return F.silu(F.conv1d(F.pad(x, (3, 0)), conv1d_weight, conv1d_bias, groups=x.shape[1])), z


def plain_inner(
    u, z, x_proj_weight, delta_proj_weight, A, D, delta_bias, B=None, C=None, B_proj_bias=None, C_proj_bias=None,
    b_rms_weight=None, c_rms_weight=None, dt_rms_weight=None, eps=1e-6,
):  # fmt: skip
    """The rest of the mixer as it is defined, one time step after the other: (batch, dim, length)."""

    def rms(values, weight):
        return values if weight is None else values / (values.square().mean(-1, keepdim=True) + eps).sqrt() * weight

    rank, state = delta_proj_weight.shape[1], A.shape[1]
    columns = u.mT @ x_proj_weight.T
    width = 2 * state if A.is_complex() else state

    def varying(given, part, bias, weight):
        if given is not None:
            return [given] * u.shape[-1]
        part = part if bias is None else part + bias
        part = torch.view_as_complex(part.unflatten(-1, (-1, 2)).contiguous()) if A.is_complex() else part
        return rms(part, weight)[:, :, None].unbind(1)

    B = varying(B, columns[..., rank : rank + width], B_proj_bias, b_rms_weight)
    C = varying(C, columns[..., -width:], C_proj_bias, c_rms_weight)
    delta = F.softplus(rms(columns[..., :rank] @ delta_proj_weight.T, dt_rms_weight) + delta_bias)
    h, outs = torch.zeros((), dtype=A.dtype), []
    for t in range(u.shape[-1]):
        step = delta[:, t, :, None]
        h = torch.exp(step * A) * h + step * B[t] * u[:, :, t, None]
        y = (h * C[t]).sum(-1)
        outs.append((2 * y.real if A.is_complex() else y) + D * u[:, :, t])
    return torch.stack(outs, -1) * F.silu(z)


OUTER = ("out_proj_weight", "out_proj_bias")

CONVOLUTION = ("xz", "conv1d_weight", "conv1d_bias")

OPTIONS = [
    {},
    {"constant_B": True},
    {"constant_C": True},
    {"complex_A": True},
    {"complex_A": True, "constant_B": True, "constant_C": True},
    {"biases": True},
    {"normed": True},
]


def gradients(out: Tensor, leaves: dict[str, Tensor], gradient: Tensor) -> dict[str, Tensor]:
    return dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), gradient), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")
def test_mamba_inner_and_every_gradient_are_those_of_the_definition(options, dtype):
    exact = {name: value.requires_grad_() for name, value in inner_arguments(**options).items() if value is not None}
    rest = {name: value for name, value in exact.items() if name not in (*CONVOLUTION, *OUTER)}
    y = plain_inner(*convolved(*(exact[name] for name in CONVOLUTION)), **rest)
    expected = F.linear(y.mT, exact["out_proj_weight"], exact["out_proj_bias"])
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = gradients(expected, exact, gradient)

    leaves = {
        name: value.detach().to(dtype.to_complex() if value.is_complex() else dtype).requires_grad_()
        for name, value in exact.items()
    }
    out = scan.mamba_inner_fn(**leaves)
    assert out.dtype == dtype
    close(out, expected)
    for name, value in gradients(out, leaves, gradient.to(dtype)).items():
        close(value, truth[name], name)
    without = scan.mamba_inner_fn_no_out_proj(**{name: leaf for name, leaf in leaves.items() if name not in OUTER})
    close(without, y)
    if "normed" not in options:
        close(scan.mamba_inner_ref(**leaves, delta_softplus=False), expected)


def test_bimamba_inner_has_the_gradient_that_upstream_loses():
    """The one that flows into z, and so into xz, from the second direction."""
    arguments = inner_arguments()
    exact = {name: value.requires_grad_() for name, value in arguments.items() if value is not None}
    A_b = (arguments["A"].detach() * 1.7).requires_grad_()
    rest = {name: value for name, value in exact.items() if name not in (*CONVOLUTION, *OUTER)}
    u, z = convolved(*(exact[name] for name in CONVOLUTION))
    back = plain_inner(u.flip(-1), z.flip(-1), **rest | {"A": A_b}).flip(-1)
    y = plain_inner(u, z, **rest) + back
    expected = F.linear(y.mT, *(exact[name] for name in OUTER))
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves = exact | {"A_b": A_b}
    truth = gradients(expected, leaves, gradient)
    out = scan.bimamba_inner_fn(**leaves)
    close(out, expected)
    for name, value in gradients(out, leaves, gradient).items():
        close(value, truth[name], name)
    close(scan.bimamba_inner_ref(**leaves), expected)
    with pytest.raises(ProblemError, match="both must be real, or both complex"):
        scan.bimamba_inner_fn(**leaves | {"A_b": A_b.to(torch.complex128)})


def test_under_autocast_the_projections_are_narrow_and_the_scan_is_exact():
    arguments = {name: value.float() for name, value in inner_arguments().items() if value is not None}
    expected = scan.mamba_inner_fn(**arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = scan.mamba_inner_fn(**arguments | {"xz": arguments["xz"].bfloat16()})
    assert out.dtype == torch.bfloat16
    assert relative_error(out.float(), expected) < 0.05


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"A": torch.zeros(6, 5, dtype=torch.float64)}, "x_proj_weight has 11 rows: must be 13"),
        ({"conv1d_weight": torch.zeros(6, 2, 4, dtype=torch.float64)}, r"conv1d_weight is \(6, 2, 4\): must be"),
        ({"out_proj_weight": torch.zeros(5, 6, device="meta")}, "out_proj_weight is on meta, xz on cpu"),
        ({"out_proj_bias": torch.zeros(5, device="meta")}, "out_proj_bias is on meta, xz on cpu"),
    ],
)
def test_projections_that_do_not_fit_are_refused(changes, complaint):
    with pytest.raises(ProblemError, match=complaint):
        scan.mamba_inner_fn(**inner_arguments() | changes)
