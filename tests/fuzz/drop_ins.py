"""Calls of the functions that stand in for those of mamba_ssm and VMamba."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fuzz.case import Arguments, Case, Results, UnfitError, fit
from fuzz.convolutions import conv_loop
from fuzz.draws import Draw
from fuzz.fronts import offset
from fuzz.other_scans import floating
from fuzz.scans import scan_loop
from scanlab.integrations.mamba_ssm.ops.selective_scan_interface import bimamba_inner_fn, mamba_inner_fn
from scanlab.integrations.vmamba import selective_scan_cuda_core, selective_scan_cuda_ndstate, selective_scan_cuda_oflex


def inner_arguments(draw: Draw, *, edge: bool) -> Arguments:
    """Draw the arguments of `mamba_inner_fn`."""
    batch, dim, length = draw.randint(1, 2), draw.size(24), draw.size(20, odd=(1, 33))
    if edge and draw.chance(0.2):
        batch, length = draw.pick(((0, length), (batch, 0)))
    rank, states, features, width = draw.randint(1, 4), draw.pick((1, 3, 16)), draw.size(12), draw.pick((2, 3, 4))
    constant_B, constant_C = draw.chance(0.2), draw.chance(0.2)
    columns = rank + (0 if constant_B else states) + (0 if constant_C else states)
    return {
        "xz": draw.lay(draw.normal(batch, 2 * dim, length)),
        "conv1d_weight": draw.lay(draw.normal(dim, 1, width)),
        "conv1d_bias": draw.maybe(draw.lay(draw.normal(dim))),
        "x_proj_weight": draw.lay(draw.normal(columns, dim, scale=dim**-0.5)),
        "delta_proj_weight": draw.lay(draw.normal(dim, rank, scale=0.3)),
        "out_proj_weight": draw.lay(draw.normal(features, dim)),
        "out_proj_bias": draw.maybe(draw.lay(draw.normal(features))),
        "A": draw.lay(-draw.uniform(0.1, 2.0, dim, states)),
        "B": draw.lay(draw.normal(dim, states)) if constant_B else None,
        "C": draw.lay(draw.normal(dim, states)) if constant_C else None,
        "D": draw.maybe(draw.lay(draw.normal(dim))),
        "delta_bias": draw.maybe(draw.lay(draw.normal(dim))),
        "delta_softplus": True,
    }


def inner_loop(given: Arguments) -> Results:
    """Return what `mamba_inner_fn` must give, or with A_b `bimamba_inner_fn`."""
    xz = fit("xz", given["xz"], (-1, -1, -1))
    dim, odd = divmod(xz.shape[1], 2)
    if odd:
        raise UnfitError("xz")
    weight = fit("conv1d_weight", given["conv1d_weight"], (dim, 1, -1))
    u = conv_loop(xz[:, :dim], weight[:, 0], given["conv1d_bias"], activation="silu")
    A, step = fit("A", given["A"], (dim, -1)), fit("delta_proj_weight", given["delta_proj_weight"], (dim, -1))
    rank, states = step.shape[1], A.shape[1]
    free = sum(given[name] is None for name in ("B", "C"))
    select = fit("x_proj_weight", given["x_proj_weight"], (rank + free * states, dim))
    selected = u.mT @ select.T
    B = selected[..., rank : rank + states].mT if given["B"] is None else given["B"]
    C = selected[..., selected.shape[-1] - states :].mT if given["C"] is None else given["C"]
    delta = (selected[..., :rank] @ step.T).mT
    options = (given["D"], xz[:, dim:], given["delta_bias"])
    softplus = bool(given["delta_softplus"])
    y, _ = scan_loop(u, delta, A, B, C, *options, delta_softplus=softplus)
    if "A_b" in given:
        A_b = fit("A_b", given["A_b"], A.shape)
        y = y + scan_loop(u, delta, A_b, B, C, *options, delta_softplus=softplus, reverse=True)[0]
    out_weight = fit("out_proj_weight", given["out_proj_weight"], (-1, dim))
    out, bias = y.mT @ out_weight.T, given["out_proj_bias"]
    if isinstance(bias, Tensor) and bias.dim() > 1:
        return {}  # torch broadcasts some
    return {"out": out if bias is None else out + offset(bias, out_weight.shape[0])}


def mamba_inner(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of `mamba_inner_fn`."""
    return _inner(draw, mamba_inner_fn, inner_arguments(draw, edge=edge))


def bimamba_inner(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of `bimamba_inner_fn`."""
    arguments = inner_arguments(draw, edge=edge)
    arguments["A_b"] = draw.lay(-draw.uniform(0.1, 2.0, *arguments["A"].shape))
    return _inner(draw, bimamba_inner_fn, arguments)


def _inner(draw: Draw, function: Callable[..., Tensor], arguments: Arguments) -> Case:
    return Case(
        function.__name__,
        arguments,
        lambda given: {"out": function(**given)},
        inner_loop,
        lambda given: {"out": given["xz"].dtype},
        differentiated=floating(arguments) if draw.chance(0.3) else (),
    )


VMAMBA = {
    "core": selective_scan_cuda_core,
    "oflex": selective_scan_cuda_oflex,
    "ndstate": selective_scan_cuda_ndstate,
}


def vmamba(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of a compiled module of VMamba, forward and backward."""
    name = draw.pick(list(VMAMBA))
    groups = draw.pick((1, 2, 4))
    batch, dim, length = draw.randint(1, 2), groups * draw.size(10), draw.size(20, odd=(1, 49))
    states = 1 if name == "ndstate" else draw.pick((1, 3, 16))
    dtype = draw.pick((torch.float32, torch.float32, torch.bfloat16))
    tail = () if name == "ndstate" else (states,)
    arguments: Arguments = {
        "u": draw.lay(draw.normal(batch, dim, length, dtype=dtype)),
        "delta": draw.lay(draw.uniform(0.01, 0.6, batch, dim, length, dtype=dtype)),
        "A": draw.lay(-draw.uniform(0.1, 2.0, dim, *tail)),
        "B": draw.lay(draw.normal(batch, groups, *tail, length, dtype=dtype)),
        "C": draw.lay(draw.normal(batch, groups, *tail, length, dtype=dtype)),
        "D": draw.maybe(draw.lay(draw.normal(dim))),
        "delta_bias": draw.maybe(draw.lay(draw.normal(dim, scale=0.3))),
        "delta_softplus": draw.chance(0.5),
    }
    dout = draw.normal(batch, dim, length, dtype=dtype)
    order = ("u", "delta", "A", "B", "C", "D", "delta_bias")

    def present(given: Arguments) -> list[str]:
        return [key for key in order if given[key] is not None]

    def call(given: Arguments) -> Results:
        tensors, softplus = [given[key] for key in order], given["delta_softplus"]
        module = VMAMBA[name]
        rest = (softplus, 1, False) if name == "oflex" else (softplus, 1)
        with torch.inference_mode(False):
            out, x = module.fwd(*tensors, *rest)
            gradients = module.bwd(*tensors, dout, x, softplus, 1)
        return {"out": out, **{f"d{key}": each for key, each in zip(order, gradients, strict=True) if each is not None}}

    def reference(given: Arguments) -> Results:
        tensors = {key: given[key] for key in order}
        if name == "ndstate":
            axes = {"A": 1, "B": 2, "C": 2}
            if any(not isinstance(given[key], Tensor) or given[key].dim() != axes[key] + (key != "A") for key in axes):
                raise UnfitError("A, B or C")
            tensors |= {key: given[key].unsqueeze(axis) for key, axis in axes.items()}
        if any(not value.is_floating_point() for value in tensors.values() if isinstance(value, Tensor)):
            raise RuntimeError("integers have no gradients")
        leaves = {key: value.detach().requires_grad_() for key, value in tensors.items() if isinstance(value, Tensor)}
        with torch.inference_mode(False), torch.enable_grad():
            out, _ = scan_loop(**tensors | leaves, delta_softplus=given["delta_softplus"])
        found = torch.autograd.grad(out, [leaves[key] for key in present(given)], dout.to(out.dtype), allow_unused=True)
        results = {"out": out.detach()}
        for key, each in zip(present(given), found, strict=True):
            results[f"d{key}"] = torch.zeros_like(given[key]) if each is None else each.view(given[key].shape)
        return results

    def dtypes(given: Arguments) -> dict[str, torch.dtype]:
        return {"out": given["u"].dtype, **{f"d{key}": given[key].dtype for key in present(given)}}

    return Case(f"selective_scan_cuda_{name}", arguments, call, reference, dtypes)
