"""The official functions as scanlab serves them: goldens of the official code, and compositions in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab import registry
from scanlab.deploy import dispatch
from scanlab.errors import ProblemError
from scanlab.integrations.mamba_ssm import conv, extensions, gated_norms, norms, scan
from scanlab.lab.verify import relative_error
from scanlab.mixer import selective_state_update
from scanlab.problem import ScanInputs, ScanProblem, make_inputs

from ..kernels import golden_ops
from ..mixer.golden_cases import STORED, golden_cases

TOLERANCE = 2e-5
REAL = [name for name, case in golden_ops.CASES.items() if case["grads"]]


@pytest.fixture(autouse=True)
def reference_scan(monkeypatch):
    """The scan itself is tested elsewhere: these tests need no compiler."""
    monkeypatch.setenv("SCANLAB_BACKEND", "two_phase:threads=1")
    dispatch.forget_dispatchers()
    yield
    dispatch.forget_dispatchers()


def close(actual: Tensor, expected: Tensor, name: str = "") -> None:
    assert relative_error(actual.detach(), expected.detach()) <= TOLERANCE, name


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
    exact = [each.double() for each in (u, delta, A, B, C, D, z, bias)]
    expected = scan.selective_scan_fn(*exact, delta_softplus=True)
    assert torch.equal(out_z, expected.bfloat16())


SIZES = {"batch": 2, "dim": 6, "length": 9, "state": 4, "rank": 3, "features": 5}


def inner_arguments(seed: int = 0, **options: bool) -> dict[str, Tensor | None]:
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


def test_under_autocast_the_projections_are_narrow_and_the_scan_is_exact():
    arguments = {name: value.float() for name, value in inner_arguments().items() if value is not None}
    expected = scan.mamba_inner_fn(**arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = scan.mamba_inner_fn(**arguments | {"xz": arguments["xz"].bfloat16()})
    assert out.dtype == torch.bfloat16
    assert relative_error(out.float(), expected) < 0.05


@pytest.mark.parametrize("case", golden_cases("conv"), ids=lambda case: case.name)
def test_the_convolution_is_the_official_one_by_every_name(case):
    x, weight, bias, initial = (case.tensor(name) for name in ("x", "w", "b", "s"))
    activation = case.options["activation"]
    silu = activation is not None
    out, final = conv.causal_conv1d_fn(x, weight, bias, None, initial, True, activation=activation)
    close(out, case.tensor("out"))
    assert torch.equal(final.double(), case.tensor("final_states"))
    close(conv.causal_conv1d_ref(x, weight, bias, initial, activation=activation), out)
    plain = () if initial is not None else ((silu,), (None, silu))
    for positional in (*plain, (None, initial, None, silu)):
        assert torch.equal(extensions.causal_conv1d_fwd(x, weight, bias, *positional), out)
    place, last = torch.empty_like(out), torch.empty_like(final)
    assert extensions.causal_conv1d_fwd(x, weight, bias, None, initial, place, last, silu) is None
    assert torch.equal(place, out)
    assert torch.equal(last, final)
    assert torch.equal(conv.causal_conv1d_fwd_function(x, weight, bias, None, initial, None, silu), out)


def test_gradients_of_the_convolution_by_every_signature():
    draw = torch.Generator().manual_seed(0)
    x, dout = (torch.randn(2, 5, 9, generator=draw) for _ in range(2))
    weight, bias = torch.randn(5, 4, generator=draw), torch.randn(5, generator=draw)
    initial, dfinal = (torch.randn(2, 5, 3, generator=draw) for _ in range(2))
    leaves = [each.clone().requires_grad_() for each in (x, weight, bias, initial)]
    plain = F.silu(F.conv1d(F.pad(leaves[0], (3, 0)), leaves[1][:, None], leaves[2], groups=5))
    truth = torch.autograd.grad(plain, leaves[:3], dout)
    dx = torch.zeros_like(x)
    for arguments in ((dx, True), (None, dx, True), (None, None, None, dx, False, True)):
        found = extensions.causal_conv1d_bwd(x, weight, bias, dout, *arguments)
        assert found[0] is dx
        assert len(found) == (3 if len(arguments) < 6 else 4)
        for value, expected in zip(found, truth, strict=False):
            close(value, expected)
    out, final = conv.causal_conv1d_fn(*leaves[:3], initial_states=leaves[3], return_final_states=True)
    torch.testing.assert_close(final, torch.cat((initial, x), -1)[..., -3:])
    activated = F.silu(out)
    truth = torch.autograd.grad([activated, final], leaves, [dout, dfinal])
    out_silu = conv.causal_conv1d_fn(*leaves[:3], initial_states=leaves[3], activation="silu")
    torch.testing.assert_close(out_silu, activated)
    places = [torch.zeros_like(each) for each in (x, weight, bias, initial)]
    assert extensions.causal_conv1d_bwd(x, weight, bias, dout, None, initial, dfinal, *places, True) is None
    for value, expected in zip(places, truth, strict=True):
        close(value, expected)
    *found, none = conv.causal_conv1d_bwd_function(x, weight, None, dout, None, None, None, None, False, True)
    assert found[2] is none is None


def test_activation_in_the_place_of_the_first_release():
    x, weight = torch.rand(1, 3, 5), torch.rand(3, 4)
    assert torch.equal(
        conv.causal_conv1d_fn(x, weight, None, "silu"), conv.causal_conv1d_fn(x, weight, activation="silu")
    )
    with pytest.raises(NotImplementedError, match="activation='relu'"):
        conv.causal_conv1d_fn(x, weight, activation="relu")


@pytest.mark.parametrize("case", golden_cases("conv_update"), ids=lambda case: case.name)
def test_steps_of_the_convolution_by_every_signature(case):
    x, weight, bias, seqlens = (case.tensor(name) for name in ("x", "w", "b", "cache_seqlens"))
    silu = case.options["activation"] is not None
    place = torch.empty_like(x)
    activation = case.options["activation"]

    def into_place(state: Tensor) -> Tensor:
        assert extensions.causal_conv1d_update(x, state, weight, bias, place, silu, seqlens, None) is None
        return place

    calls = [
        lambda state: conv.causal_conv1d_update(x, state, weight, bias, activation, seqlens),
        lambda state: conv.causal_conv1d_update_ref(x, state, weight, bias, activation, seqlens),
        lambda state: extensions.causal_conv1d_update(x, state, weight, bias, silu, seqlens),
        lambda state: extensions.causal_conv1d_update(x, state, weight, bias, silu, seqlens, None),
        lambda state: conv.causal_conv1d_update_function(x, state, weight, bias, silu, seqlens, None),
        into_place,
    ]
    if seqlens is None:
        calls.append(lambda state: extensions.causal_conv1d_update(x, state, weight, bias, silu))
    for call in calls:
        state = case.tensor("state_before").clone()
        close(call(state), case.tensor("out"))
        assert torch.equal(state.double(), case.tensor("state_after"))


def test_an_unknown_call_says_which_there_are():
    for function, arguments in (
        (extensions.causal_conv1d_fwd, 6),
        (extensions.causal_conv1d_bwd, 9),
        (extensions.causal_conv1d_update, 9),
    ):
        with pytest.raises(ProblemError, match=f"{function.__name__} with {arguments} arguments"):
            function(*[None] * arguments)


def test_last_inputs_of_packed_sequences():
    x, bounds = (torch.from_numpy(STORED[f"varlen_states/{name}"]) for name in ("x", "cu_seqlens"))
    expected = torch.from_numpy(STORED["varlen_states/states_len3"])
    assert torch.equal(conv.causal_conv1d_varlen_states(x, bounds, 3), expected)


def test_the_plain_state_update_is_the_same():
    draw = torch.Generator().manual_seed(0)
    x, dt, z = (torch.randn(2, 5, generator=draw) for _ in range(3))
    A, B, C = -torch.rand(5, 3, generator=draw), torch.rand(2, 3, generator=draw), torch.rand(2, 3, generator=draw)
    one, other = torch.ones(2, 5, 3), torch.ones(2, 5, 3)
    arguments = (x, dt, A, B, C, torch.ones(5), z, torch.zeros(5), True)
    close(scan.selective_state_update_ref(one, *arguments), selective_state_update(other, *arguments))
    close(one, other)


def plain_norm(total: Tensor, weight: Tensor, bias: Tensor | None, eps: float, rms: bool) -> Tensor:
    total = total if rms else total - total.mean(-1, keepdim=True)
    normed = total / (total.square().mean(-1, keepdim=True) + eps).sqrt() * weight
    return normed if bias is None else normed + bias


@pytest.mark.parametrize(
    ("rms", "residual", "prenorm", "parallel", "scaled"),
    [each for each in itertools.product((False, True), repeat=5) if not (each[3] and each[4])],
)
def test_norms_and_their_gradients(rms, residual, prenorm, parallel, scaled):
    draw = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()

    x, weight, bias = leaf(2, 3, 8), leaf(8), leaf(8)
    optional = {
        "residual": leaf(2, 3, 8) if residual else None,
        "x1": leaf(2, 3, 8) if parallel else None,
        "weight1": leaf(8) if parallel else None,
        "rowscale": leaf(2, 3) if scaled else None,
    }
    total = x if not scaled else x * optional["rowscale"][..., None]
    for name in ("x1", "residual"):
        total = total if optional[name] is None else total + optional[name]
    expected = [plain_norm(total, weight, bias, 1e-6, rms)]
    if parallel:
        expected.append(plain_norm(total, optional["weight1"], None, 1e-6, rms))
    expected += [total] if prenorm else []
    function = norms.rms_norm_fn if rms else norms.layer_norm_fn
    found = function(x, weight, bias, prenorm=prenorm, **optional)
    found = list(found) if isinstance(found, tuple) else [found]
    leaves = [each for each in (x, weight, bias, *optional.values()) if each is not None]
    seeds = [torch.randn(each.shape, generator=draw, dtype=torch.float64) for each in expected]
    for value, truth in zip(found, expected, strict=True):
        close(value, truth)
    for value, truth in zip(
        torch.autograd.grad(found, leaves, seeds), torch.autograd.grad(expected, leaves, seeds), strict=True
    ):
        close(value, truth)


@pytest.mark.parametrize(
    ("hidden", "residual", "in_fp32", "expected"),
    [
        (torch.bfloat16, None, False, torch.bfloat16),
        (torch.bfloat16, None, True, torch.float32),
        (torch.bfloat16, torch.float32, False, torch.float32),
        (torch.bfloat16, torch.bfloat16, True, torch.bfloat16),
        (torch.float32, torch.bfloat16, False, torch.bfloat16),
    ],
)
def test_the_sum_has_the_dtype_that_upstream_gives_it(hidden, residual, in_fp32, expected):
    x = torch.rand(2, 4, dtype=hidden)
    before = None if residual is None else torch.rand(2, 4, dtype=residual)
    out, total = norms.rms_norm_fn(x, torch.ones(4), None, before, prenorm=True, residual_in_fp32=in_fp32)
    assert (out.dtype, total.dtype) == (hidden, expected)


def test_dropout_returns_the_masks_of_what_it_kept():
    torch.manual_seed(0)
    x, weight = torch.ones(50, 40), torch.ones(40)
    out, total, mask, mask1 = norms.layer_norm_fn(
        x, weight, None, x1=x, dropout_p=0.25, prenorm=True, return_dropout_mask=True
    )
    assert mask.float().mean() == pytest.approx(0.75, abs=0.05)
    torch.testing.assert_close(total, (mask.float() + mask1.float()) / 0.75)
    close(out, plain_norm(total, weight, None, 1e-6, False))
    assert norms.rms_norm_fn(x, weight, None, return_dropout_mask=True)[1:] == (None, None)
    module = norms.RMSNorm(40, dropout_p=0.5)
    assert (module(x, prenorm=True)[1] == 0).any()
    assert torch.equal(module.eval()(x, prenorm=True)[1], x)


def test_norm_and_linear_layer():
    x, residual, weight = torch.rand(3, 8), torch.rand(3, 8), torch.rand(5, 8)
    out, total = norms.layer_norm_linear_fn(x, torch.ones(8), None, weight, None, residual, prenorm=True)
    close(total, x + residual)
    close(out, plain_norm(total, torch.ones(8), None, 1e-6, False) @ weight.T)
    with pytest.raises(ProblemError, match="x1 and rowscale"):
        norms.layer_norm_fn(x, torch.ones(8), None, x1=x, rowscale=torch.ones(3))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("group", [None, 4])
@pytest.mark.parametrize("module", [gated_norms.RMSNorm, gated_norms.LayerNorm])
def test_gated_norms(module, group, before):
    draw = torch.Generator().manual_seed(0)
    x, z = (torch.randn(3, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    norm = module(8, group_size=group, norm_before_gate=before, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight, generator=draw)
    value = x if before else x * F.silu(z)
    expected = plain_norm(value.unflatten(-1, (-1, group or 8)), 1.0, None, 1e-5, module is gated_norms.RMSNorm)
    expected = expected.flatten(-2) * norm.weight
    close(norm(x, z), expected * F.silu(z) if before else expected)


def test_the_reference_is_the_reference():
    inputs = make_inputs(ScanProblem(batch=1, dim=4, length=5, state=3))[0]
    expected = registry.get("reference").build(ScanProblem(batch=1, dim=4, length=5, state=3))(inputs).out
    assert torch.equal(scan.selective_scan_ref(*inputs[:-1], delta_softplus=True), expected)
    assert "reference" in dispatch.explain()
