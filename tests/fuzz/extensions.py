"""Calls of the modules that stand in for compiled ones, forward and backward, and of the states of packed sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fuzz.case import Arguments, Case, Results, UnfitError, fit, has_memory
from fuzz.convolutions import conv_loop, final_states, sequences, signal, weights
from fuzz.draws import Draw
from fuzz.scans import scan_loop
from scanlab.integrations.causal_conv1d import cpp_functions
from scanlab.integrations.causal_conv1d.causal_conv1d_varlen import causal_conv1d_varlen_states
from scanlab.integrations.mamba_ssm import cuda_extensions


def gradients(outputs: list[Tensor], leaves: Arguments, upstream: list[Tensor]) -> Results:
    """Return the gradient of each leaf, called like it with a d in front."""
    seeds = {out: each.to(out.dtype) for each, out in zip(upstream, outputs, strict=True) if out.requires_grad}
    found: Sequence[Tensor | None] = [None] * len(leaves)
    if seeds:
        found = torch.autograd.grad(list(seeds), list(leaves.values()), list(seeds.values()), allow_unused=True)
    return {
        f"d{name}": torch.zeros_like(leaf) if each is None else each
        for (name, leaf), each in zip(leaves.items(), found, strict=True)
    }


def leaves_of(given: Arguments, names: tuple[str, ...]) -> Arguments:
    """Return the tensors among the named arguments, as leaves of a graph; raise as torch does for integers."""
    return {name: given[name].detach().requires_grad_() for name in names if isinstance(given[name], Tensor)}


def selective_scan_cuda(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of `selective_scan_cuda.fwd` and `.bwd`."""
    groups, states = draw.pick((1, 1, 2)), draw.pick((1, 3, 16))
    batch, dim, length = draw.randint(1, 2), groups * draw.size(10), draw.size(20, odd=(1, 49))
    if edge and draw.chance(0.3):
        batch, length = draw.pick(((0, length), (batch, 0)))
    dtype = draw.pick((torch.float32, torch.float32, torch.bfloat16))
    arguments: Arguments = {
        "u": draw.lay(draw.normal(batch, dim, length, dtype=dtype)),
        "delta": draw.lay(draw.uniform(0.01, 0.6, batch, dim, length, dtype=dtype)),
        "A": draw.lay(-draw.uniform(0.1, 2.0, dim, states)),
        "B": draw.lay(draw.normal(batch, groups, states, length, dtype=dtype)),
        "C": draw.lay(draw.normal(batch, groups, states, length, dtype=dtype)),
        "D": draw.maybe(draw.lay(draw.normal(dim))),
        "z": draw.maybe(draw.lay(draw.normal(batch, dim, length, dtype=dtype))),
        "delta_bias": draw.maybe(draw.lay(draw.normal(dim, scale=0.3))),
        "delta_softplus": draw.chance(0.5),
    }
    order = ("u", "delta", "A", "B", "C", "D", "delta_bias", "z")
    dout = draw.normal(batch, dim, length, dtype=dtype)

    def call(given: Arguments) -> Results:
        with torch.inference_mode(False):
            out, x, *gated = cuda_extensions.fwd(**given)
            rest: Arguments = {"dout": dout, "x": x, "out": out, "dz": None, "recompute_out_z": bool(gated)}
            found = cuda_extensions.bwd(**given, **rest)
        names = (*order[: 7 + bool(gated)], "out_z")
        results = {"out": out, "last_state": x[:, :, 0, 1::2]} | ({"gated": gated[0]} if gated else {})
        return results | {f"d{name}": each for name, each in zip(names, found, strict=False) if each is not None}

    def reference(given: Arguments) -> Results:
        leaves = leaves_of(given, order)
        with torch.inference_mode(False), torch.enable_grad():
            out, last_state = scan_loop(**{**given, **leaves, "z": None})
            z = given["z"]
            gated = out if z is None else out * F.silu(leaves.get("z", fit("z", z, out.shape)))
        results = {"out": out.detach(), "last_state": last_state.detach()}
        if z is not None:
            fit("z", z, out.shape)
            results |= {"gated": gated.detach(), "dout_z": gated.detach()}
        return results | gradients([gated], leaves, [dout])

    def dtypes(given: Arguments) -> dict[str, torch.dtype]:
        present = [name for name in order if given[name] is not None]
        found = {"out": given["u"].dtype, "last_state": torch.float32, "gated": given["u"].dtype}
        found |= {"dout_z": given["u"].dtype} | {f"d{name}": given[name].dtype for name in present}
        return {name: each for name, each in found.items() if given["z"] is not None or name not in ("gated", "dout_z")}

    half = 2 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 0.0  # parts of gradients are rounded first
    return Case("selective_scan_cuda", arguments, call, reference, dtypes, rounding=half)


def conv_extension(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of the forward and the backward function of `causal_conv1d.cpp_functions`."""
    x = signal(draw, edge=edge).nan_to_num(0.0, 1.0, -1.0)  # gradients at special values are conventions
    arguments: Arguments = {"x": x, **weights(draw, x.shape[1], x.dtype), "seq_idx": None, "initial_states": None}
    width = arguments["weight"].shape[1]
    before = (*x.shape[:2], width - 1)
    finals = False
    match draw.randrange(3):
        case 0:
            arguments["seq_idx"] = sequences(draw, x.shape[0], x.shape[2])
        case 1:
            arguments["initial_states"] = draw.maybe(draw.lay(draw.normal(*before, dtype=x.dtype)))
            finals = draw.chance(0.5)
    arguments["silu_activation"] = draw.chance(0.5)
    dout = draw.normal(*x.shape, dtype=x.dtype)
    dfinals = draw.normal(*before, dtype=x.dtype) if finals else None
    order = ("x", "weight", "bias", "initial_states")

    def call(given: Arguments) -> Results:
        with torch.inference_mode(False):
            kept = torch.empty(before, dtype=x.dtype) if finals else None
            out = cpp_functions.causal_conv1d_fwd_function(**given, final_states_out=kept)
            found = cpp_functions.causal_conv1d_bwd_function(
                **given, dout=dout, dfinal_states=dfinals, dx=None, return_dinitial_states=True
            )
        results = {"out": out} | ({} if kept is None else {"final_states": kept})
        return results | {f"d{name}": each for name, each in zip(order, found, strict=True) if each is not None}

    def reference(given: Arguments) -> Results:
        leaves = leaves_of(given, order)
        with torch.inference_mode(False), torch.enable_grad():
            activation = "silu" if given["silu_activation"] else None
            inputs = {name: value for name, value in (given | leaves).items() if name != "silu_activation"}
            outs, upstream = [conv_loop(**inputs, activation=activation)], [dout]
            if dfinals is not None:
                outs.append(final_states(inputs["x"], width, inputs["initial_states"], inputs["seq_idx"]))
                upstream.append(dfinals)
        if any(each.shape != out.shape for each, out in zip(upstream, outs, strict=True)):
            raise UnfitError("x is not of the shape of its gradient")
        names = ("out", "final_states")
        results = {name: out.detach() for name, out in zip(names, outs, strict=False)}
        return results | gradients(outs, leaves, upstream)

    def dtypes(given: Arguments) -> dict[str, torch.dtype]:
        found = {"out": given["x"].dtype} | ({"final_states": x.dtype} if finals else {})
        return found | {f"d{name}": given[name].dtype for name in order if given[name] is not None}

    half = any(each.dtype.itemsize == 2 for each in arguments.values() if isinstance(each, Tensor))
    return Case(
        "causal_conv1d.cpp_functions",
        arguments,
        call,
        reference,
        dtypes,
        arithmetic=torch.float64 if x.dtype == torch.float64 else torch.float32,
        rounding=2 * torch.finfo(torch.bfloat16).eps if half else 0.0,
    )


def varlen_states(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of `causal_conv1d_varlen_states`."""
    tokens, dim = draw.randint(0 if edge else 1, 20), draw.size(9)
    bounds = sorted(draw.randint(0, tokens) for _ in range(draw.randint(0, 4)))
    if edge and draw.chance(0.3):
        bounds.append(draw.pick((-1, tokens + 1, 0)))
    arguments: Arguments = {
        "x": draw.lay(draw.normal(tokens, dim, dtype=draw.dtype())),
        "cu_seqlens": draw.lay(torch.tensor([0, *bounds, tokens], dtype=draw.pick((torch.int32, torch.int64)))),
        "state_len": draw.randint(-1 if edge else 0, 6),
    }

    def reference(given: Arguments) -> Results:
        if isinstance(given["x"], Tensor) and not has_memory(given["x"]):
            return {}  # a part of it is read, and copied as torch does
        x, width = fit("x", given["x"], (-1, -1), is_complex=True), given["state_len"]
        bounds = fit("cu_seqlens", given["cu_seqlens"], (-1,), integers=True).tolist()
        if type(width) is not int or width < 0 or not bounds or bounds != sorted(bounds):
            raise UnfitError("state_len or cu_seqlens")
        if bounds[0] < 0 or bounds[-1] > len(x):
            raise UnfitError("cu_seqlens")
        states = x.new_zeros(len(bounds) - 1, x.shape[1], width)
        for state, begin, end in zip(states, bounds, bounds[1:], strict=False):
            for place in range(width):
                at = end - width + place
                if at >= begin:
                    state[:, place] = x[at]
        return {"states": states}

    return Case(
        "causal_conv1d_varlen_states",
        arguments,
        lambda given: {"states": causal_conv1d_varlen_states(**given)},
        reference,
        lambda given: {"states": given["x"].dtype},
    )
