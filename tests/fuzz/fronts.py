"""Calls of the products and of the fused front half of a Mamba block."""

from __future__ import annotations

import torch
from torch import Tensor

from fuzz.case import Arguments, Case, Results, UnfitError, fit
from fuzz.convolutions import conv_loop
from fuzz.draws import Draw
from scanlab.runtime import ops
from scanlab.runtime.front import mamba_front


def offset(bias: object, features: int) -> Tensor:
    """Return the bias of a product, as torch takes it: of any shape that (features,) can be broadcast with."""
    bias = fit("bias", bias, (-1,) * bias.dim() if isinstance(bias, Tensor) else ())
    if bias.shape[-1:].numel() not in (1, features) or bias.numel() != bias.shape[-1:].numel():
        raise UnfitError("bias")
    return bias.flatten() if bias.dim() == 2 else bias  # a row, which torch takes for a vector


def rows(draw: Draw, *shape: int, dtype: torch.dtype) -> Tensor:
    """Draw rows of a product, without NaN beside them where torch reads beyond their ends.

    In bfloat16 it multiplies pairs, of which the second of the last may lie behind the row, with zero.
    """
    values = draw.normal(*shape, dtype=dtype)
    return draw.lay(values, draw.pick(("dense", "permuted", "expanded"))) if dtype.itemsize == 2 else draw.lay(values)


def product(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of `linear`."""
    count = draw.pick((1, 2, 8, 9, 31, 32, 33, 64, 100))
    into, features = draw.size(70, odd=(1, 16, 32, 64, 192)), draw.size(70, odd=(1, 16, 32, 384))
    if edge and draw.chance(0.4):
        count, into, features = draw.pick(((0, into, features), (count, 0, features), (count, into, 0)))
    dtype = draw.dtype()
    shape = draw.pick(((count,), (1, count), (count, 1), (count, 2)))
    arguments: Arguments = {
        "x": rows(draw, *shape, into, dtype=dtype),
        "weight": rows(draw, features, into, dtype=dtype),
        "bias": draw.maybe(draw.lay(draw.normal(features, dtype=dtype))),
    }
    if edge and draw.chance(0.3) and dtype.itemsize > 2:
        arguments["x"] = draw.spoil(arguments["x"])

    def call(given: Arguments) -> Results:
        return {"out": ops.linear(given["x"], ops.PrepackedWeight(given["weight"]), given["bias"])}

    def reference(given: Arguments) -> Results:
        if not isinstance(given["x"], Tensor) or not given["x"].dim():
            raise UnfitError("x")
        x = fit("x", given["x"], (-1,) * given["x"].dim())
        if isinstance(given["weight"], Tensor) and given["weight"].dim() == 1:  # a vector, as torch takes it
            weight = fit("weight", given["weight"], x.shape[-1:])
            return {"out": x @ weight + (0 if given["bias"] is None else fit("bias", given["bias"], ()))}
        if isinstance(arguments["weight"], Tensor) and arguments["weight"].is_sparse and dtype.itemsize == 2:
            return {}  # torch adds up in this dtype
        weight = fit("weight", given["weight"], (-1, x.shape[-1]))
        out = x @ weight.T
        return {"out": out if given["bias"] is None else out + offset(given["bias"], weight.shape[0])}

    names = tuple(n for n, v in arguments.items() if isinstance(v, Tensor))
    return Case(
        "linear",
        arguments,
        call,
        reference,
        lambda given: {"out": given["x"].dtype},
        arithmetic=dtype if dtype in (torch.float64, torch.float16) else torch.float32,
        differentiated=names if draw.chance(0.2) and dtype in (torch.float32, torch.float64) else (),
        exact_infinities=False,
        rounding=torch.finfo(dtype).eps if dtype.itemsize == 2 else 0.0,  # torch rounds before it adds the bias
    )


def front(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of `mamba_front` in one direction or both."""
    batch, length = draw.randint(1, 3), draw.size(40, odd=(1, 32, 33, 64, 65, 130))
    model, dim = draw.size(40, odd=(1, 16, 64)), draw.size(70, odd=(1, 16, 64, 65))
    if edge and draw.chance(0.3):
        batch, length = draw.pick(((0, length), (batch, 0)))
    rank, states, width = draw.randint(1, 6), draw.pick((1, 2, 8, 16)), draw.pick((1, 2, 3, 4, 4))
    dtype = draw.pick((torch.float32, torch.float32, torch.bfloat16, torch.float64))
    both = draw.chance(0.5)
    arguments: Arguments = {
        "hidden": rows(draw, batch, length, model, dtype=dtype),
        "into": rows(draw, 2 * dim, model, dtype=dtype) * model**-0.5,
        "into_bias": draw.maybe(draw.lay(draw.normal(2 * dim, dtype=dtype)), 0.4),
    }
    for suffix in ("", "_reverse") if both else ("",):
        arguments |= {
            f"conv_weight{suffix}": draw.lay(draw.normal(dim, width, dtype=dtype)),
            f"conv_bias{suffix}": draw.maybe(draw.lay(draw.normal(dim, dtype=dtype))),
            f"select{suffix}": rows(draw, rank + 2 * states, dim, dtype=dtype) * dim**-0.5,
            f"dt{suffix}": rows(draw, dim, rank, dtype=dtype),
        }
    suffixes = ("", "_reverse") if both else ("",)
    names = ["gate"] + [name + suffix for suffix in suffixes for name in ("u", "delta", "B", "C")]

    def call(given: Arguments) -> Results:
        packed = ops.PrepackedWeight
        into = ops.InProjection(packed(given["into"]), given["into_bias"])
        directions = [
            ops.DirectionWeights(
                given[f"conv_weight{suffix}"],
                given[f"conv_bias{suffix}"],
                packed(given[f"select{suffix}"]),
                packed(given[f"dt{suffix}"]),
            )
            for suffix in suffixes
        ]
        found = mamba_front(given["hidden"], ops.FrontWeights(into, *directions))
        return dict(zip(names, found, strict=True))

    def reference(given: Arguments) -> Results:
        hidden = fit("hidden", given["hidden"], (-1, -1, -1))
        into = fit("into", given["into"], (-1, hidden.shape[2]))
        dim, odd = divmod(into.shape[0], 2)
        if odd:
            raise UnfitError("into")
        both = hidden @ into.T
        both = both if given["into_bias"] is None else both + fit("into_bias", given["into_bias"], (2 * dim,))
        x, results = both[..., :dim].mT, {"gate": both[..., dim:]}
        for suffix in suffixes:
            u = conv_loop(
                x,
                given[f"conv_weight{suffix}"],
                given[f"conv_bias{suffix}"],
                activation="silu",
                reverse=suffix == "_reverse",
            ).mT
            dt = fit("dt", given[f"dt{suffix}"], (dim, -1))
            select = fit("select", given[f"select{suffix}"], (-1, dim))
            states, odd = divmod(select.shape[0] - dt.shape[1], 2)
            if states < 0 or odd:
                raise UnfitError("select")
            low, B, C = (u @ select.T).split((dt.shape[1], states, states), 2)
            results |= {f"u{suffix}": u, f"delta{suffix}": low @ dt.T, f"B{suffix}": B, f"C{suffix}": C}
        return results

    leaves = tuple(n for n, v in arguments.items() if isinstance(v, Tensor))
    return Case(
        "mamba_front",
        arguments,
        call,
        reference,
        lambda given: dict.fromkeys(names, given["hidden"].dtype),
        arithmetic=dtype,
        differentiated=leaves if draw.chance(0.2) and dtype != torch.bfloat16 else (),
    )
