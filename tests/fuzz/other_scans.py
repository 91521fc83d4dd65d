"""Calls of the scans of Mamba-2 and of feature maps: every backend, configuration and dtype."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fuzz.case import Arguments, Case, Results, UnfitError, fit
from fuzz.draws import Draw
from scanlab.contract import registry
from scanlab.runtime import ssd as scanlab_ssd
from scanlab.runtime.cross_scan import cross_scan_2d
from scanlab.runtime.policy import Policy, serve_by
from scanlab_kernels.cross_scan_2d.problem import CrossScanInputs
from scanlab_kernels.ssd.problem import SsdInputs

SSD = ("ssd_chunked", "ssd_reference", "ssd_native", "ssd_native", "ssd_native")
SSD_FLOAT64 = SSD[:2]  # the native one has none
LIMITS = ((0.0, math.inf), (0.05, 0.3))
CROSS_SCAN = ("cross_scan_2d_composed", "cross_scan_2d_torch", "cross_scan_2d_native", "cross_scan_2d_native")
CROSS_SCAN_GRADIENTS = CROSS_SCAN[:2]  # the native one has none


def selection(draw: Draw, names: tuple[str, ...]) -> str:
    """Draw a backend and a configuration."""
    backend = registry.get(draw.pick(names))
    config = {tunable.name: draw.pick(tunable.values) for tunable in backend.space.tunables}
    if "exp" in config:
        config["exp"] = "exact"  # "fast" is not legal for every problem
    return f"{backend.name}:" + ",".join(f"{name}={value}" for name, value in config.items())


def ssd_loop(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
) -> Results:
    """Return the output and the final state, one step after the other."""
    x = fit("x", x, (-1, -1, -1, -1))
    batch, length, heads, head_dim = x.shape
    dt, A = fit("dt", dt, (batch, length, heads)), fit("A", A, (heads,))
    B = fit("B", B, (batch, length, -1, -1))
    groups, state = B.shape[2:]
    C = fit("C", C, (batch, length, groups, state))
    if not groups or heads % groups:
        raise UnfitError("groups")
    if D is not None:
        by_channel = isinstance(D, Tensor) and D.dim() == 2
        D = fit("D", D, (heads, head_dim) if by_channel else (heads,))
        D = D if by_channel else D[:, None]
    if dt_bias is not None:
        dt = dt + fit("dt_bias", dt_bias, (heads,))
    dt = F.softplus(dt) if dt_softplus else dt
    dt = dt.clamp(*dt_limit)
    B, C = (each.repeat_interleave(heads // groups, 2) for each in (B, C))
    h = torch.zeros(batch, heads, head_dim, state, dtype=x.dtype)
    if initial_state is not None:
        h = fit("initial_state", initial_state, h.shape)
    sequence = torch.zeros(batch, dtype=torch.int32)
    if seq_idx is not None:
        fit("seq_idx", seq_idx, (batch, length), integers=True)
    ys = []
    for t in range(length):
        if seq_idx is not None:
            goes_on = seq_idx[:, t] == sequence
            h = torch.where(goes_on[:, None, None, None], h, 0.0)
            sequence = seq_idx[:, t]
        step = dt[:, t, :, None, None]
        h = torch.exp(step * A[:, None, None]) * h + step * x[:, t, :, :, None] * B[:, t, :, None, :]
        ys.append((h * C[:, t, :, None, :]).sum(-1))
    y = torch.stack(ys, 1) if ys else torch.zeros_like(x)
    y = y if D is None else y + D * x
    return {"out": y if z is None else y * F.silu(fit("z", z, x.shape)), "final_state": h}


def ssd_arguments(draw: Draw, *, edge: bool) -> Arguments:
    """Draw the tensors and options of a scan of Mamba-2."""
    groups = draw.pick((1, 1, 2))
    heads, head_dim = groups * draw.randint(1, 4), draw.size(20, odd=(1, 16, 64))
    state = draw.size(20, odd=(1, 16, 128))
    batch, length = draw.randint(1, 2), draw.size(40, odd=(1, 16, 17, 64, 65, 130))
    if edge and draw.chance(0.25):
        batch, length = draw.pick(((0, length), (batch, 0)))
    dtype = draw.dtype()
    weight = torch.float64 if dtype == torch.float64 else torch.float32
    skip = draw.pick(((heads,), (heads, head_dim)))
    arguments: Arguments = {
        "x": draw.normal(batch, length, heads, head_dim, dtype=dtype),
        "dt": draw.uniform(0.01, 0.6, batch, length, heads, dtype=weight),
        "A": -draw.uniform(0.05, 3.0, heads, dtype=weight),
        "B": draw.normal(batch, length, groups, state, dtype=dtype),
        "C": draw.normal(batch, length, groups, state, dtype=dtype),
        "D": draw.maybe(draw.normal(*skip, dtype=weight)),
        "z": draw.maybe(draw.normal(batch, length, heads, head_dim, dtype=dtype)),
        "dt_bias": draw.maybe(draw.uniform(-0.5, 0.5, heads, dtype=weight)),
        "initial_state": draw.maybe(draw.normal(batch, heads, head_dim, state, dtype=weight), 0.4),
    }
    if draw.chance(0.6):
        arguments = {name: None if value is None else draw.lay(value) for name, value in arguments.items()}
    if draw.chance(0.3):
        arguments["seq_idx"] = sequences(draw, batch, length)
    return arguments | {"dt_softplus": draw.chance(0.5), "dt_limit": draw.pick(LIMITS)}


def sequences(draw: Draw, batch: int, length: int) -> Tensor:
    """Draw the index of the sequence of each step."""
    return torch.cumsum(draw.uniform(0, 1, batch, length).gt(0.9), 1).int()


def ssd(draw: Draw, *, edge: bool) -> Case:
    """Draw a scan of Mamba-2."""
    arguments = ssd_arguments(draw, edge=edge)
    weight = arguments["A"].dtype
    names = SSD_FLOAT64 if weight == torch.float64 else SSD
    named = selection(draw, names if "seq_idx" in arguments else ("ssd_scan", *names))
    if edge and draw.chance(0.4):
        name = draw.pick(("x", "B", "C"))
        spoiled = draw.spoil(arguments[name], 0.03)
        is_in_order = named.startswith(("ssd_reference", "ssd_scan"))
        arguments[name] = spoiled if is_in_order else spoiled.nan_to_num(0.0, 1.0, -1.0)

    def call(given: Arguments) -> Results:
        options = {name: given[name] for name in ("dt_softplus", "dt_limit")}
        inputs = SsdInputs(**{name: value for name, value in given.items() if name not in options})
        with serve_by(Policy.of({"ssd": named})):
            return dict(scanlab_ssd.ssd(inputs, **options)._asdict())

    return Case(
        "ssd",
        arguments,
        call,
        lambda given: ssd_loop(**given),
        ssd_dtypes,
        arithmetic=weight,
        differentiated=floating(arguments) if draw.chance(0.4) else (),
        exact_infinities=False,  # chunks multiply decays before states
        note=named,
    )


def ssd_dtypes(given: Arguments) -> dict[str, torch.dtype]:
    """Return the dtypes of the results."""
    varying = (given[name].dtype for name in ("x", "B", "C", "z") if given[name] is not None)
    widest = functools.reduce(torch.promote_types, varying)
    return {"out": given["x"].dtype, "final_state": torch.promote_types(widest, torch.float32)}


def floating(arguments: Arguments) -> tuple[str, ...]:
    """Return the names of the floating tensors."""
    return tuple(n for n, v in arguments.items() if isinstance(v, Tensor) and v.is_floating_point())


def cross_scan_loop(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    dt_weight: Tensor | None = None,
    *,
    delta_softplus: bool,
) -> Tensor:
    """Return the sum of the scans along rows and columns, forward and in reverse."""
    u = fit("u", u, (-1, -1, -1, -1))
    batch, dim, height, width = u.shape
    if dt_weight is not None:
        low = fit("delta", delta, (batch, 4, -1, height, width))
        delta = torch.einsum("bkrhw,kdr->bkdhw", low, fit("dt_weight", dt_weight, (4, dim, low.shape[2])))
    delta, A = fit("delta", delta, (batch, 4, dim, height, width)), fit("A", A, (4, dim, -1))
    state = A.shape[2]
    B, C = (fit(name, each, (batch, 4, state, height, width)) for name, each in (("B", B), ("C", C)))
    if delta_bias is not None:
        delta = delta + fit("delta_bias", delta_bias, (4, dim))[:, :, None, None]
    delta = F.softplus(delta) if delta_softplus else delta
    rows = [(i, j) for i in range(height) for j in range(width)]
    columns = [(i, j) for j in range(width) for i in range(height)]
    total = torch.zeros_like(u) if D is None else u * fit("D", D, (4, dim)).sum(0)[:, None, None]
    for k, order in enumerate((rows, columns, rows[::-1], columns[::-1])):
        h = torch.zeros(batch, dim, state, dtype=u.dtype)
        found = {}
        for i, j in order:
            step = delta[:, k, :, i, j, None]
            h = torch.exp(step * A[k]) * h + step * B[:, k, None, :, i, j] * u[:, :, i, j, None]
            found[i, j] = (h * C[:, k, None, :, i, j]).sum(-1)
        if found:
            total = total + torch.stack([found[each] for each in rows], -1).view(u.shape)
    return total


def cross_scan(draw: Draw, *, edge: bool) -> Case:
    """Draw a scan of a feature map in four directions."""
    batch, dim, state = draw.randint(1, 2), draw.size(20, odd=(1, 16, 17, 33)), draw.pick((1, 1, 2, 3, 16))
    height, width = draw.size(7), draw.size(7)
    if edge and draw.chance(0.2):
        batch, height = draw.pick(((0, height), (batch, 0)))
    dtype = draw.dtype()
    weight = torch.float64 if dtype == torch.float64 else torch.float32
    arguments: Arguments = {
        "u": draw.normal(batch, dim, height, width, dtype=dtype),
        "delta": draw.uniform(0.01, 0.8, batch, 4, dim, height, width, dtype=dtype),
        "A": -draw.uniform(0.05, 3.0, 4, dim, state, dtype=weight),
        "B": draw.normal(batch, 4, state, height, width, dtype=dtype),
        "C": draw.normal(batch, 4, state, height, width, dtype=dtype),
        "D": draw.maybe(draw.normal(4, dim, dtype=weight)),
        "delta_bias": draw.maybe(draw.uniform(-0.5, 0.5, 4, dim, dtype=weight)),
    }
    if draw.chance(0.3):
        rank = draw.size(20, odd=(1, 16, 17))
        arguments["delta"] = draw.uniform(0.01, 0.8, batch, 4, rank, height, width, dtype=dtype)
        arguments["dt_weight"] = draw.uniform(0.0, 2 / rank, 4, dim, rank, dtype=weight)
    if edge and draw.chance(0.4):
        name = draw.pick(("u", "B", "C"))
        arguments[name] = draw.spoil(arguments[name], 0.03)
    if draw.chance(0.6):
        arguments = {name: None if value is None else draw.lay(value) for name, value in arguments.items()}
    arguments["delta_softplus"] = draw.chance(0.5)
    differentiated = floating(arguments) if draw.chance(0.4) else ()
    named = selection(draw, CROSS_SCAN_GRADIENTS if differentiated else CROSS_SCAN)

    def call(given: Arguments) -> Results:
        inputs = CrossScanInputs(**{name: value for name, value in given.items() if name != "delta_softplus"})
        return {"out": cross_scan_2d(inputs, delta_softplus=given["delta_softplus"], backend=named)}

    return Case(
        "cross_scan_2d",
        arguments,
        call,
        lambda given: {"out": cross_scan_loop(**given)},
        lambda given: {"out": given["u"].dtype},
        arithmetic=weight,
        differentiated=differentiated,
        exact_infinities=False,
        rounding=4 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 0.0,  # of each direction, before they are added
        note=named,
    )
