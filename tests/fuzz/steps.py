"""Calls of the decoding steps: selective_state_update and mixer_step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fuzz.case import Arguments, Case, Results, UnfitError, fit
from fuzz.convolutions import expect_rows, odd_state, update_loop
from fuzz.draws import Draw
from scanlab.runtime import ops


def state_loop(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
    log_A: bool = False,
) -> Results:
    """Return the output and the new state, one head of one row after the other."""
    if not isinstance(x, Tensor) or x.dim() not in (2, 3) or not isinstance(B, Tensor) or B.dim() != x.dim():
        raise UnfitError("x or B")
    x = fit("x", x, (-1,) * x.dim())
    if x.dim() == 2:
        own, groups = tuple(x.shape[1:]), 1
    else:
        own, groups = tuple(x.shape[1:]), B.shape[1]
        if not groups or own[0] % groups:
            raise UnfitError("groups")
    batch = x.shape[0]
    A = fit("A", A, (*own, -1))
    states = A.shape[-1]
    dt = fit("dt", dt, x.shape)
    B, C = (fit(n, each, (batch, *((groups,) if x.dim() == 3 else ()), states)) for n, each in (("B", B), ("C", C)))
    rows = list(range(batch))
    if state_batch_indices is not None:
        rows = fit("state_batch_indices", state_batch_indices, (batch,), integers=True).tolist()
    new = fit("state", state, (batch if state_batch_indices is None else -1, *own, states)).clone()
    expect_rows(rows, len(new))
    if dt_bias is not None:
        dt = dt + fit("dt_bias", dt_bias, own)
    if dt_softplus:
        dt = F.softplus(dt)
    rates = -torch.exp(A) if log_A else A
    skip = None if D is None else fit("D", D, own)
    gate = None if z is None else F.silu(fit("z", z, x.shape))
    out = torch.zeros_like(x)
    for entry, row in enumerate(rows):
        if row < 0:
            continue
        own_B, own_C = B[entry], C[entry]
        if x.dim() == 3:
            own_B, own_C = (each.repeat_interleave(own[0] // groups, 0)[:, None] for each in (own_B, own_C))
        step = dt[entry][..., None]
        h = new[row] * torch.exp(step * rates) + step * own_B * x[entry][..., None]
        y = (h * own_C).sum(-1)
        y = y if skip is None else y + skip * x[entry]
        out[entry] = y if gate is None else y * gate[entry]
        new[row] = h
    return {"out": out, "state": new}


def state_update(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of `selective_state_update`."""
    heads = draw.pick((0, 0, 1, 2, 6))
    groups = draw.pick([g for g in (1, 2, 3) if heads and heads % g == 0] or [1])
    batch, dim, states = draw.randint(1, 4), draw.size(40, odd=(1, 64, 65)), draw.size(18, odd=(1, 16, 16, 33, 128))
    if edge and draw.chance(0.25):
        batch, dim, states = draw.pick(((0, dim, states), (batch, 0, states), (batch, dim, 0)))
    own = (heads, dim) if heads else (dim,)
    dtype = draw.dtype()

    def kind() -> torch.dtype:
        return draw.dtype() if draw.chance(0.2) else dtype

    projection = (batch, groups, states) if heads else (batch, states)
    log_A = draw.chance(0.3)
    A = (
        draw.uniform(-1.0, 1.0, *own, states, dtype=kind())
        if log_A
        else -draw.uniform(0.1, 3, *own, states, dtype=kind())
    )
    rows = batch
    arguments: Arguments = {
        "state": None,
        "x": draw.lay(draw.normal(batch, *own, dtype=dtype)),
        "dt": draw.lay(draw.uniform(0.01, 0.8, batch, *own, dtype=kind())),
        "A": draw.lay(A),
        "B": draw.lay(draw.normal(*projection, dtype=kind())),
        "C": draw.lay(draw.normal(*projection, dtype=kind())),
        "D": draw.maybe(draw.lay(draw.normal(*own, dtype=kind()))),
        "z": draw.maybe(draw.lay(draw.normal(batch, *own, dtype=kind()))),
        "dt_bias": draw.maybe(draw.lay(draw.uniform(-0.5, 0.5, *own, dtype=kind()))),
        "dt_softplus": draw.chance(0.5),
        "state_batch_indices": None,
        "log_A": log_A,
    }
    if draw.chance(0.4):
        rows = batch + draw.randint(0, 3)
        picked = torch.randperm(rows, generator=draw.generator)[:batch].int()
        if edge and draw.chance(0.1):
            picked[:1] = picked[-1:]  # two sequences of one row
        arguments["state_batch_indices"] = draw.lay_state(
            torch.where(draw.uniform(0, 1, batch) < 0.2, -1, picked).int()
        )
    arguments["state"] = draw.lay_state(draw.normal(rows, *own, states, dtype=kind()))
    if edge and draw.chance(0.3):
        name = draw.pick(("x", "dt", "B", "C"))
        arguments[name] = draw.spoil(arguments[name])
    is_wide = any(arguments[name].dtype == torch.float64 for name in ("x", "state", "A"))
    case = Case(
        "selective_state_update",
        arguments,
        lambda given: {"out": ops.selective_state_update(**given)},
        lambda given: state_loop(**given),
        lambda given: {"out": given["x"].dtype},
        arithmetic=torch.float64 if is_wide else torch.float32,
        states=("state",),
    )
    if edge:
        odd_state(draw, case, "state", ("x", "dt", "B", "C", "z", "D", "A", "dt_bias"))
    return case


def mixer_step(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of `mixer_step`."""
    batch, dim, rank, states = (
        draw.randint(1, 10),
        draw.size(40, odd=(1, 64)),
        draw.randint(1, 5),
        draw.pick((1, 3, 16)),
    )
    if edge and draw.chance(0.25):
        batch, dim = draw.pick(((0, dim), (batch, dim)))
    width = draw.pick((1, 2, 4, 4))
    dtype = draw.dtype()

    def kind() -> torch.dtype:
        return torch.float32 if draw.chance(0.3) and dtype != torch.float64 else dtype

    arguments: Arguments = {
        "projected": draw.lay(draw.normal(batch, 2 * dim, dtype=dtype)),
        "conv_state": draw.lay_state(draw.normal(batch, dim, width - 1 + draw.randint(width == 1, 2), dtype=dtype)),
        "state": draw.lay_state(draw.normal(batch, dim, states, dtype=kind())),
        "conv_weight": draw.lay(draw.normal(dim, width, dtype=kind())),
        "conv_bias": draw.maybe(draw.lay(draw.normal(dim, dtype=kind()))),
        "x_weight": draw.lay(draw.normal(rank + 2 * states, dim, dtype=dtype, scale=dim**-0.5)),
        "dt_weight": draw.lay(draw.normal(dim, rank, dtype=dtype, scale=0.5)),
        "dt_bias": draw.maybe(draw.lay(draw.normal(dim, dtype=kind()))),
        "A_log": draw.lay(draw.uniform(-1, 1, dim, states, dtype=kind())),
        "D": draw.lay(draw.normal(dim, dtype=kind())),
    }

    def reference(given: Arguments) -> Results:
        projected = fit("projected", given["projected"], (-1, -1))
        both = projected.shape[1]
        dim = both // 2
        if both % 2:
            raise UnfitError("projected")
        A_log, dt_weight = fit("A_log", given["A_log"], (dim, -1)), fit("dt_weight", given["dt_weight"], (dim, -1))
        states, rank = A_log.shape[1], dt_weight.shape[1]
        x_weight = fit("x_weight", given["x_weight"], (rank + 2 * states, dim))
        moved = update_loop(
            projected[:, :dim], given["conv_state"], given["conv_weight"], given["conv_bias"], activation="silu"
        )
        u = moved["out"]
        selected = u @ x_weight.T
        dt = selected[:, :rank] @ dt_weight.T
        B, C = selected[:, rank : rank + states], selected[:, rank + states :]
        D, z = fit("D", given["D"], (dim,)), projected[:, dim:]
        done = state_loop(given["state"], u, dt, A_log, B, C, D, z, given["dt_bias"], True, None, True)
        return {"out": done["out"], "conv_state": moved["conv_state"], "state": done["state"]}

    case = Case(
        "mixer_step",
        arguments,
        lambda given: {"out": ops.mixer_step(**given)},
        reference,
        lambda given: {"out": given["projected"].dtype},
        arithmetic=dtype,
        states=("conv_state", "state"),
    )
    if edge:
        readers = ("projected", "conv_weight", "conv_bias", "x_weight", "dt_weight", "dt_bias", "A_log", "D")
        odd_state(draw, case, draw.pick(("conv_state", "state")), readers)
        if draw.chance(0.2) and batch:
            both = draw.normal(batch, dim, states + width, dtype=dtype)
            arguments |= {"conv_state": both[..., :width], "state": both[..., width:]}
            case.may_refuse = True  # their elements lie between one another
    return case
