"""Calls of the selective scan: every backend and configuration, direction, dtype and kind of B and C."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from fuzz.case import Arguments, Case, Results, UnfitError, fit
from fuzz.draws import Draw
from scanlab.contract import registry
from scanlab.contract.problem import DIRECTIONS, Direction, ScanInputs
from scanlab.runtime.dispatch import dispatcher, selective_scan_fn

TENSORS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
BACKENDS = ("native", "native", "native", "native", "reference", "two_phase", "cpp_torch", "chunked", "associative")


def scan_loop(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the output and the last state of a scan, one step after the other."""
    u = fit("u", u, (-1, -1, -1))
    batch, dim, length = u.shape
    delta = fit("delta", delta, u.shape)
    A = fit("A", A, (dim, -1), is_complex=True)
    state = A.shape[1]
    B, C = (_by_channel(name, each, u, A) for name, each in (("B", B), ("C", C)))
    if delta_bias is not None:
        delta = delta + fit("delta_bias", delta_bias, (dim,))[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    h = torch.zeros(batch, dim, state, dtype=A.dtype)
    if initial_state is not None:
        h = fit("initial_state", initial_state, (batch, dim, state), is_complex=A.is_complex())
    ys = []
    for t in reversed(range(length)) if reverse else range(length):
        step = delta[:, :, t, None]
        h = torch.exp(step * A) * h + step * B[..., t] * u[:, :, t, None]
        y = (C[..., t] * h).sum(-1)
        ys.append(2 * y.real if y.is_complex() else y)
    y = torch.stack(ys[::-1] if reverse else ys, -1) if ys else torch.zeros_like(u)
    if D is not None:
        y = y + fit("D", D, (dim,))[:, None] * u
    if z is not None:
        y = y * F.silu(fit("z", z, u.shape))
    return y, h


def _by_channel(name: str, projection: Tensor, u: Tensor, A: Tensor) -> Tensor:
    """Return B or C as (batch, dim, state, length)."""
    batch, dim, length = u.shape
    state = A.shape[1]
    if not isinstance(projection, Tensor) or projection.dim() not in (2, 3, 4):
        raise UnfitError(f"{name} is no projection")
    if projection.dim() == 2:
        return fit(name, projection, (dim, state), is_complex=A.is_complex())[None, :, :, None].expand(
            batch, -1, -1, length
        )
    if projection.dim() == 3:
        projection = projection[:, None]
    projection = fit(name, projection, (batch, -1, state, length * (2 if A.is_complex() else 1)))
    groups = projection.shape[1]
    if not groups or dim % groups:
        raise UnfitError(f"{name} has {groups} groups")
    if A.is_complex():
        pairs = projection.unflatten(-1, (length, 2))
        projection = torch.complex(pairs[..., 0], pairs[..., 1])
    return projection.repeat_interleave(dim // groups, 1)


def reference(arguments: Arguments, *, directions: tuple[str, ...]) -> Results:
    """Return the sum of the outputs of the directions, and the last state of each."""
    found, groups = [], set()
    softplus = arguments["delta_softplus"]
    for direction, suffix in zip(directions, ("", "_reverse"), strict=False):
        tensors = [arguments.get(name + suffix) for name in TENSORS]
        groups |= {each.shape[1] if each.dim() == 4 else 1 for each in tensors[3:5] if _is_varying(each)}
        found.append(scan_loop(*tensors, delta_softplus=softplus, reverse=direction == "reverse"))
        if len({each.shape[1] if each.dim() == 4 else 1 for each in tensors[3:5] if _is_varying(each)}) > 1:
            raise UnfitError("B and C have different groups")
    if len({out.shape for out, _ in found}) > 1:
        raise UnfitError("the directions differ")
    out = functools.reduce(torch.add, (each for each, _ in found))
    return {"out": out, "last_state": found[0][1] if len(found) == 1 else torch.stack([h for _, h in found])}


def _is_varying(tensor: object) -> bool:
    return isinstance(tensor, Tensor) and tensor.dim() > 2


def dtypes(arguments: Arguments) -> dict[str, torch.dtype]:
    """Return the dtypes of the output and the last state."""
    varying = [arguments[name] for name in ("u", "delta", "z") if arguments.get(name) is not None]
    varying += [arguments[name] for name in ("B", "C") if arguments[name].dim() > 2]
    widest = functools.reduce(torch.promote_types, [each.dtype for each in varying])
    weight = torch.float64 if widest == torch.float64 else torch.float32
    return {
        "out": arguments["u"].dtype,
        "last_state": weight.to_complex() if arguments["A"].is_complex() else weight,
    }


def inputs(draw: Draw, *, edge: bool) -> Arguments:
    """Draw the tensors of one direction."""
    state = draw.size(18, odd=(1, 16, 16, 31, 64, 255, 256))
    small = state > 20
    groups = draw.pick((1, 1, 1, 2, 3))
    batch, dim = draw.randint(1, 3), groups * draw.size(5 if small else 24, odd=(1, 8, 16, 17, 33))
    length = draw.size(9 if small else 40, odd=(1, 2, 63, 64, 65))
    if edge and draw.chance(0.2):
        batch, dim, length = draw.pick(((0, dim, length), (batch, dim, 0), (batch, 0, length)))
    dtype = draw.dtype()
    mixed = draw.chance(0.15)
    weight = torch.float64 if dtype == torch.float64 else torch.float32
    is_complex = draw.chance(0.2)

    def varying(*shape: int) -> torch.dtype:
        return draw.pick((torch.float32, torch.bfloat16, torch.float16)) if mixed else dtype

    def projection() -> Tensor:
        if draw.chance(0.25):
            real = draw.normal(dim, state, dtype=weight)
            return torch.complex(real, draw.normal(dim, state, dtype=weight)) if is_complex else real
        values = draw.normal(batch, groups, state, length * (2 if is_complex else 1), dtype=varying())
        return values if groups > 1 or draw.chance(0.3) else values[:, 0]

    B, C = projection(), projection()
    if {each.shape[1] for each in (B, C) if each.dim() == 4} and groups > 1 and min(B.dim(), C.dim()) == 3:
        C = B
    A = -draw.uniform(0.05, 3.0, dim, state, dtype=weight)
    if is_complex:
        A = torch.complex(A, draw.normal(dim, state, dtype=weight))
    tensors = {
        "u": draw.normal(batch, dim, length, dtype=varying()),
        "delta": draw.uniform(0.01, 0.8, batch, dim, length, dtype=varying()),
        "A": A,
        "B": B,
        "C": C,
        "D": draw.maybe(draw.normal(dim, dtype=weight)),
        "z": draw.maybe(draw.normal(batch, dim, length, dtype=varying())),
        "delta_bias": draw.maybe(draw.uniform(-0.5, 0.5, dim, dtype=weight)),
    }
    if edge and draw.chance(0.5):
        name = draw.pick([name for name, value in tensors.items() if value is not None and name != "A"])
        tensors[name] = draw.spoil(tensors[name])
    return tensors


def laid(draw: Draw, tensors: Arguments) -> Arguments:
    """Return the tensors in odd layouts, or half of the time as they are."""
    if draw.chance(0.4):
        return tensors
    return {
        name: value if not isinstance(value, Tensor) or value.is_complex() else draw.lay(value)
        for name, value in tensors.items()
    }


def selection(draw: Draw, *, chunked_time: bool = True) -> str:
    """Draw a backend and a configuration, as `selective_scan_fn` takes them."""
    backend = registry.get(draw.pick(BACKENDS))
    config = {tunable.name: draw.pick(tunable.values) for tunable in backend.space.tunables}
    if backend.name == "native":
        config["exp"] = "exact"  # "fast" is not legal for every problem
        config["time_chunks"] = config["time_chunks"] if chunked_time else 1
    return f"{backend.name}:" + ",".join(f"{name}={value}" for name, value in config.items())


def selective_scan(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of `selective_scan_fn`."""
    arguments = laid(draw, inputs(draw, edge=edge))
    arguments |= {"delta_softplus": draw.chance(0.5), "backend": selection(draw)}

    def call(given: Arguments) -> Results:
        out, last_state = selective_scan_fn(**given, return_last_state=True)
        return {"out": out, "last_state": last_state}

    differentiated = tuple(name for name, value in arguments.items() if isinstance(value, Tensor))
    return Case(
        "selective_scan_fn",
        arguments,
        call,
        functools.partial(reference, directions=("forward",)),
        dtypes,
        arithmetic=dtypes(arguments)["last_state"].to_real(),
        differentiated=differentiated if draw.chance(0.4) else (),
        exact_infinities=_is_in_order(arguments["backend"], arguments["A"]),
    )


def directed_scan(draw: Draw, *, edge: bool) -> Case:
    """Draw a scan in reverse, or of both directions, with an initial state, as models call it."""
    direction: Direction = draw.pick(DIRECTIONS)
    named = selection(draw, chunked_time=direction != "bidirectional")
    first = inputs(draw, edge=edge)
    sets = [first]
    state_shape = (first["u"].shape[0], *first["A"].shape)
    if draw.chance(0.5):
        first["initial_state"] = draw.normal(*state_shape, dtype=first["A"].dtype.to_real()).to(first["A"].dtype)
    first = laid(draw, first)
    if direction == "bidirectional":
        sets.append({name: draw.lay(_again(draw, value)) for name, value in first.items() if value is not None})
    arguments = first | {f"{name}_reverse": value for each in sets[1:] for name, value in each.items()}
    arguments["delta_softplus"] = draw.chance(0.5)

    def call(given: Arguments) -> Results:
        suffixes = ("", "_reverse") if direction == "bidirectional" else ("",)
        each = [ScanInputs(*(given.get(name + suffix) for name in TENSORS)) for suffix in suffixes]
        softplus = given["delta_softplus"]
        out, last = dispatcher(named)(*each, delta_softplus=softplus, direction=direction, promote=True)
        return {"out": out, "last_state": last}

    def out_dtypes(given: Arguments) -> dict[str, torch.dtype]:
        found = dtypes(given)
        varying = [given[name].dtype for name in ("u", "delta", "B", "C", "z") if _is_varying(given.get(name))]
        return found | {"out": functools.reduce(torch.promote_types, varying)}

    directions = ("forward", "reverse") if direction == "bidirectional" else (direction,)
    return Case(
        f"scan {direction}",
        arguments,
        call,
        functools.partial(reference, directions=directions),
        out_dtypes,
        arithmetic=dtypes(arguments)["last_state"].to_real(),
        differentiated=tuple(n for n, v in arguments.items() if isinstance(v, Tensor)) if draw.chance(0.4) else (),
        # Each direction is rounded before they are added.
        rounding=2 * torch.finfo(first["u"].dtype).eps if direction == "bidirectional" else 0.0,
        exact_infinities=_is_in_order(named, first["A"]),
        note=named,
    )


def _is_in_order(named: str, A: Tensor) -> bool:
    """Return whether a backend multiplies real decays one after the other, so that infinite states stay infinite."""
    in_order = named.startswith(("reference", "two_phase", "cpp_torch", "native"))
    return in_order and not A.is_complex()


def _again(draw: Draw, tensor: Tensor) -> Tensor:
    """Return other numbers of the same shape, dtype and sign."""
    order = torch.randperm(tensor.numel(), generator=draw.generator)
    return tensor.flatten()[order].view(tensor.shape)
