"""Calls of the norms: add_norm, and the functions of mamba_ssm on top of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fuzz.case import Arguments, Case, Results, UnfitError, fit
from fuzz.draws import Draw
from fuzz.fronts import offset
from scanlab.integrations.mamba_ssm.ops.triton.layer_norm import layer_norm_fn, layer_norm_linear_fn
from scanlab.integrations.mamba_ssm.ops.triton.layernorm_gated import layernorm_fn
from scanlab.runtime import ops


def normalised(total: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *, centred: bool) -> Tensor:
    """Return the norm over the last axis."""
    if total.shape[-1] == 0:
        return total
    values = total - total.mean(-1, keepdim=True) if centred else total
    out = values / torch.sqrt((values * values).mean(-1, keepdim=True) + eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def shape_of(draw: Draw, *, edge: bool) -> tuple[int, ...]:
    """Draw the shape of what is normalised."""
    dim = draw.size(70, odd=(1, 2, 3, 8, 16, 64, 100, 192, 1000))
    rows = draw.pick(((), (draw.randint(1, 9),), (draw.randint(1, 3), draw.randint(1, 9)), (2, 1, 3)))
    if edge and draw.chance(0.3):
        return draw.pick(((0, dim), (3, 0), (2, 0, dim), (0,)))
    return (*rows, dim)


def rows_of(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype, *, edge: bool) -> Tensor:
    """Draw rows, some of a mean far from zero."""
    mean = draw.pick((0.0, 0.0, 1.0, 10.0, 1000.0)) if dtype in (torch.float32, torch.float64) else 0.0
    x = draw.normal(*shape, dtype=dtype, mean=mean)
    return draw.lay(draw.spoil(x, 0.03) if edge and draw.chance(0.4) else x)


def add_norm(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of `add_norm`."""
    shape, dtype = shape_of(draw, edge=edge), draw.dtype()
    x = rows_of(draw, shape, dtype, edge=edge)
    other = draw.dtype() if draw.chance(0.3) else dtype
    widened = torch.promote_types(dtype, torch.float32)
    arguments: Arguments = {
        "hidden": x,
        "residual": draw.maybe(rows_of(draw, shape, draw.pick((dtype, widened)), edge=edge)),
        "weight": draw.lay(draw.normal(shape[-1], dtype=other)),
        "bias": draw.maybe(draw.lay(draw.normal(shape[-1], dtype=draw.pick((other, torch.float32))))),
        "eps": draw.pick((1e-5, 1e-6, 1e-3)),
        "kind": draw.pick(("rms", "layer")),
        "residual_in_fp32": draw.chance(0.5),
    }

    def call(given: Arguments) -> Results:
        positional = [given[name] for name in ("hidden", "residual", "weight", "bias")]
        options = {name: given[name] for name in ("eps", "kind", "residual_in_fp32")}
        return dict(zip(("out", "total"), ops.add_norm(*positional, **options), strict=True))

    def reference(given: Arguments) -> Results:
        if not isinstance(given["hidden"], Tensor) or not given["hidden"].dim():
            raise UnfitError("hidden")
        hidden = fit("hidden", given["hidden"], (-1,) * given["hidden"].dim())
        weight = fit("weight", given["weight"], hidden.shape[-1:])
        bias = None if given["bias"] is None else fit("bias", given["bias"], hidden.shape[-1:])
        total = hidden if given["residual"] is None else hidden + fit("residual", given["residual"], hidden.shape)
        if given["kind"] not in ("rms", "layer"):
            raise UnfitError("kind")
        return {
            "out": normalised(total, weight, bias, given["eps"], centred=given["kind"] == "layer"),
            "total": total,
        }

    def dtypes(given: Arguments) -> dict[str, torch.dtype]:
        own = given["hidden"].dtype
        return {"out": own, "total": torch.promote_types(own, torch.float32) if given["residual_in_fp32"] else own}

    narrow_total = dtype in (torch.bfloat16, torch.float16) and not arguments["residual_in_fp32"]
    names = tuple(n for n, v in arguments.items() if isinstance(v, Tensor))
    return Case(
        "add_norm",
        arguments,
        call,
        reference,
        dtypes,
        arithmetic=torch.float64 if dtype == torch.float64 else torch.float32,
        # The gradient is taken at the total after its rounding, which the loop does not round.
        differentiated=names if draw.chance(0.5) and not narrow_total and shape[-1] else (),
    )


def layer_norm(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of mamba_ssm's `layer_norm_fn`."""
    shape, dtype = shape_of(draw, edge=edge), draw.dtype()
    dim = shape[-1]
    second = draw.chance(0.3)
    x1 = draw.maybe(rows_of(draw, shape, draw.pick((dtype, dtype, draw.dtype())), edge=edge), 0.3)
    arguments: Arguments = {
        "x": rows_of(draw, shape, dtype, edge=edge),
        "weight": draw.lay(draw.normal(dim)),
        "bias": draw.maybe(draw.lay(draw.normal(dim))),
        "residual": draw.maybe(rows_of(draw, shape, draw.pick((dtype, torch.float32)), edge=edge)),
        "x1": x1,
        "weight1": draw.normal(dim) if second else None,
        "bias1": draw.maybe(draw.normal(dim)) if second else None,
        "eps": draw.pick((1e-5, 1e-6)),
        "rowscale": draw.maybe(draw.normal(*shape[:-1], dtype=dtype), 0.2) if x1 is None else None,
        "prenorm": draw.chance(0.5),
        "residual_in_fp32": draw.chance(0.5),
        "is_rms_norm": draw.chance(0.5),
    }

    def call(given: Arguments) -> Results:
        found = layer_norm_fn(**given)
        names = ["out"] + ["out1"] * (given["weight1"] is not None) + ["total"] * bool(given["prenorm"])
        return dict(zip(names, found if isinstance(found, tuple) else (found,), strict=True))

    def reference(given: Arguments) -> Results:
        if not isinstance(given["x"], Tensor) or not given["x"].dim():
            raise UnfitError("x")
        x = fit("x", given["x"], (-1,) * given["x"].dim())
        if given["x1"] is not None and given["rowscale"] is not None:
            raise UnfitError("x1 and rowscale")
        total = x if given["rowscale"] is None else x * _rowscale(given["rowscale"], x)
        for name in ("x1", "residual"):
            total = total if given[name] is None else total + fit(name, given[name], x.shape)
        results = {}
        for suffix in ("", "1") if given["weight1"] is not None else ("",):
            weight = fit("weight" + suffix, given["weight" + suffix], (x.shape[-1],))
            bias = given["bias" + suffix]
            bias = None if bias is None else fit("bias" + suffix, bias, (x.shape[-1],))
            results["out" + suffix] = normalised(total, weight, bias, given["eps"], centred=not given["is_rms_norm"])
        return results | ({"total": total} if given["prenorm"] else {})

    def dtypes(given: Arguments) -> dict[str, torch.dtype]:
        own, residual = given["x"].dtype, given["residual"]
        kept = residual.dtype if residual is not None else torch.float32 if given["residual_in_fp32"] else own
        found = {"out": own, "out1": own, "total": kept}
        wanted = ["out"] + ["out1"] * (given["weight1"] is not None) + ["total"] * bool(given["prenorm"])
        return {name: found[name] for name in wanted}

    half = dtype in (torch.bfloat16, torch.float16)
    rounds = half and (arguments["x1"] is not None or arguments["rowscale"] is not None)  # the branch, in x's dtype
    # The norm hardly depends on the scale of a row, nor that of two numbers on these, which it makes 1 and -1: the
    # gradients are what is left of terms that cancel.
    cancelling = {"rowscale"} | ({"x", "residual", "x1"} if dim == 2 and not arguments["is_rms_norm"] else set())
    names = tuple(n for n, v in arguments.items() if isinstance(v, Tensor) and n not in cancelling)
    return Case(
        "layer_norm_fn",
        arguments,
        call,
        reference,
        dtypes,
        arithmetic=dtype if rounds or dtype == torch.float64 else torch.float32,
        differentiated=names if draw.chance(0.4) and not half and dim else (),
    )


def _rowscale(rowscale: object, x: Tensor) -> Tensor:
    """Return one factor for each row, which upstream takes in any shape."""
    if not isinstance(rowscale, Tensor) or rowscale.numel() != x.shape[:-1].numel():
        raise UnfitError("rowscale")
    return fit("rowscale", rowscale, rowscale.shape).reshape(x.shape[:-1])[..., None]


def gated_norm(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of mamba_ssm's gated `layernorm_fn`."""
    groups = draw.pick((1, 1, 2, 3))
    dim = groups * draw.size(30, odd=(1, 16, 64))
    dtype = draw.dtype()
    shape = (*draw.pick(((), (draw.randint(1, 5),), (2, draw.randint(1, 5)))), dim)
    if edge and draw.chance(0.3):
        shape = (0, dim)
    arguments: Arguments = {
        "x": rows_of(draw, shape, dtype, edge=edge),
        "weight": draw.lay(draw.normal(dim)),
        "bias": draw.maybe(draw.lay(draw.normal(dim))),
        "z": draw.maybe(draw.lay(draw.normal(*shape, dtype=dtype))),
        "eps": draw.pick((1e-5, 1e-6)),
        "group_size": dim // groups if groups > 1 or draw.chance(0.5) else None,
        "norm_before_gate": draw.chance(0.5),
        "is_rms_norm": draw.chance(0.5),
    }

    def reference(given: Arguments) -> Results:
        if not isinstance(given["x"], Tensor) or not given["x"].dim():
            raise UnfitError("x")
        x = fit("x", given["x"], (-1,) * given["x"].dim())
        weight = fit("weight", given["weight"], x.shape[-1:])
        bias = None if given["bias"] is None else fit("bias", given["bias"], x.shape[-1:])
        gate = None if given["z"] is None else F.silu(fit("z", given["z"], x.shape))
        size = x.shape[-1] if given["group_size"] is None else given["group_size"]
        if isinstance(size, Tensor) and size.numel() != 1:
            raise UnfitError("group_size")
        size = int(size)
        if size and x.shape[-1] % size:
            raise UnfitError("group_size")
        if gate is not None and not given["norm_before_gate"]:
            x = x * gate
        if x.shape[-1]:
            grouped = x.unflatten(-1, (-1, size))
            x = normalised(grouped, None, None, given["eps"], centred=not given["is_rms_norm"]).flatten(-2)
        out = x * weight if bias is None else x * weight + bias
        return {"out": out * gate if gate is not None and given["norm_before_gate"] else out}

    names = tuple(n for n, v in arguments.items() if isinstance(v, Tensor))
    return Case(
        "layernorm_fn (gated)",
        arguments,
        lambda given: {"out": layernorm_fn(**given)},
        reference,
        lambda given: {"out": given["x"].dtype},
        arithmetic=torch.float64 if dtype == torch.float64 else torch.float32,
        differentiated=names if draw.chance(0.4) and arguments["group_size"] != 1 else (),  # of one channel it cancels
    )


def norm_linear(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of mamba_ssm's `layer_norm_linear_fn`."""
    shape, features = shape_of(draw, edge=False), draw.size(20)
    arguments: Arguments = {
        "x": rows_of(draw, shape, torch.float32, edge=edge),
        "norm_weight": draw.lay(draw.normal(shape[-1])),
        "norm_bias": draw.maybe(draw.lay(draw.normal(shape[-1]))),
        "linear_weight": draw.lay(draw.normal(features, shape[-1])),
        "linear_bias": draw.maybe(draw.lay(draw.normal(features))),
        "residual": draw.maybe(rows_of(draw, shape, torch.float32, edge=edge)),
        "eps": 1e-6,
        "is_rms_norm": draw.chance(0.5),
    }

    def call(given: Arguments) -> Results:
        out, total = layer_norm_linear_fn(**given, prenorm=True)
        return {"out": out, "total": total}

    def reference(given: Arguments) -> Results:
        if not isinstance(given["x"], Tensor) or not given["x"].dim():
            raise UnfitError("x")
        x = fit("x", given["x"], (-1,) * given["x"].dim())
        weight = fit("norm_weight", given["norm_weight"], x.shape[-1:])
        bias = None if given["norm_bias"] is None else fit("norm_bias", given["norm_bias"], x.shape[-1:])
        product = fit("linear_weight", given["linear_weight"], (-1, x.shape[-1]))
        added = 0.0 if given["linear_bias"] is None else offset(given["linear_bias"], product.shape[0])
        total = x if given["residual"] is None else x + fit("residual", given["residual"], x.shape)
        normed = normalised(total, weight, bias, given["eps"], centred=not given["is_rms_norm"])
        return {"out": normed @ product.T + added, "total": total}

    def dtypes(given: Arguments) -> dict[str, torch.dtype]:
        residual = given["residual"]
        return {"out": given["x"].dtype, "total": given["x"].dtype if residual is None else residual.dtype}

    return Case("layer_norm_linear_fn", arguments, call, reference, dtypes)
