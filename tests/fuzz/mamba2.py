"""Calls of Mamba-2 as other packages make them: the scan, the whole layer, the step, and the minimal form."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fuzz.case import Arguments, Case, Results, UnfitError, fit
from fuzz.convolutions import conv_loop, odd_state
from fuzz.draws import Draw
from fuzz.fronts import offset
from fuzz.norms import normalised
from fuzz.other_scans import LIMITS, floating, sequences, ssd_arguments, ssd_dtypes, ssd_loop
from fuzz.steps import state_loop
from scanlab.contract.base import weight_dtype
from scanlab.integrations.mamba_ssm.modules.ssd_minimal import ssd_minimal_discrete
from scanlab.integrations.mamba_ssm.ops.triton import ssd_chunks
from scanlab.integrations.mamba_ssm.ops.triton.ssd_combined import (
    mamba_chunk_scan_combined,
    mamba_split_conv1d_scan_combined,
)
from scanlab.runtime.ssd import ssd_update


def states_after_each(inputs: Arguments, cu_seqlens: object) -> Tensor:
    """Return the state after each packed sequence, every one of which starts from zero."""
    bounds = fit("cu_seqlens", cu_seqlens, (-1,), integers=True).tolist()
    batch, length, heads, head_dim = inputs["x"].shape
    if batch != 1 or not bounds or bounds != sorted(bounds) or bounds[0] < 0 or bounds[-1] > length:
        raise UnfitError("cu_seqlens")
    states = [inputs["A"].new_zeros(0, heads, head_dim, inputs["B"].shape[-1])]
    for begin, end in itertools.pairwise(bounds):
        part = {name: inputs[name][:, begin:end] for name in ("x", "dt", "B", "C")}
        states.append(ssd_loop(**inputs | {"D": None, "z": None, "seq_idx": None} | part)["final_state"])
    return torch.cat(states)


def chunk_scan(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of `mamba_chunk_scan_combined`."""
    drawn = ssd_arguments(draw, edge=edge)
    batch, length = drawn["x"].shape[:2]
    arguments = drawn | {"chunk_size": draw.pick((1, 64, 256)), "return_varlen_states": batch == 1 and draw.chance(0.5)}
    arguments["initial_states"] = arguments.pop("initial_state")
    if arguments["return_varlen_states"]:
        between = sorted(draw.randint(0, length) for _ in range(draw.randint(0, 3)))
        arguments["cu_seqlens"] = torch.tensor([0, *between, length], dtype=torch.int32)

    def call(given: Arguments) -> Results:
        found = mamba_chunk_scan_combined(**given, return_final_states=True)
        return dict(zip(("out", "final_state", "varlen_states"), found, strict=False))

    def reference(given: Arguments) -> Results:
        own = {"initial_states", "chunk_size", "cu_seqlens", "return_varlen_states"}
        inputs = {name: value for name, value in given.items() if name not in own}
        found = ssd_loop(**inputs, initial_state=given["initial_states"])
        if not given["return_varlen_states"]:
            return found
        return found | {"varlen_states": states_after_each(inputs, given.get("cu_seqlens"))}

    def dtypes(given: Arguments) -> dict[str, torch.dtype]:
        found = ssd_dtypes(given)
        return found | {"varlen_states": found["final_state"]} if given["return_varlen_states"] else found

    return Case(
        "mamba_chunk_scan_combined",
        arguments,
        call,
        reference,
        dtypes,
        arithmetic=drawn["A"].dtype,
        differentiated=floating(arguments) if draw.chance(0.4) else (),
        exact_infinities=False,  # chunks multiply decays before states
    )


def layer(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of `mamba_split_conv1d_scan_combined`."""
    groups = draw.pick((1, 1, 2))
    heads, head_dim, state = groups * draw.randint(1, 3), draw.size(12, odd=(1, 16)), draw.size(12, odd=(1, 16))
    mlp, width, features = draw.pick((0, 0, 5)), draw.pick((1, 2, 4)), draw.size(12)
    batch, length = draw.randint(1, 2), draw.size(20, odd=(1, 65))
    if edge and draw.chance(0.25):
        batch, length = draw.pick(((0, length), (batch, 0)))
    dtype = draw.dtype()
    weight = torch.float64 if dtype == torch.float64 else torch.float32
    dim = heads * head_dim
    channels = dim + 2 * groups * state
    has_headdim, projects = draw.chance(0.7), draw.chance(0.6)
    arguments: Arguments = {
        "zxbcdt": draw.normal(batch, length, 2 * mlp + dim + channels + heads, dtype=dtype),
        "conv1d_weight": draw.normal(channels, width, dtype=dtype, scale=0.5),
        "conv1d_bias": draw.maybe(draw.normal(channels, dtype=dtype)),
        "dt_bias": draw.uniform(-1.0, 0.5, heads, dtype=weight),
        "A": -draw.uniform(0.05, 3.0, heads, dtype=weight),
        "D": draw.normal(*((heads,) if has_headdim else (heads, head_dim)), dtype=weight),
        "initial_states": draw.maybe(draw.normal(batch, heads, head_dim, state, dtype=weight), 0.4),
        "rmsnorm_weight": draw.maybe(draw.normal(dim, dtype=weight)),
        "outproj_weight": draw.normal(features, mlp + dim, dtype=dtype) if projects else None,
        "outproj_bias": draw.maybe(draw.normal(features, dtype=dtype)) if projects else None,
    }
    if draw.chance(0.5):
        arguments = {name: None if value is None else draw.lay(value) for name, value in arguments.items()}
    if draw.chance(0.3):
        arguments["seq_idx"] = sequences(draw, batch, length)
    arguments |= {
        "chunk_size": 64,
        "dt_limit": draw.pick(LIMITS),
        "activation": draw.pick((None, "silu", "swish")),
        "rmsnorm_eps": 1e-5,
        "headdim": head_dim if has_headdim else None,
        "ngroups": groups,
        "norm_before_gate": draw.chance(0.5),
    }

    def call(given: Arguments) -> Results:
        out, final_state = mamba_split_conv1d_scan_combined(**given, return_final_states=True)
        return {"out": out, "final_state": final_state}

    # The norm of one number hardly depends on it: its gradient is what is left of terms that cancel.
    is_conditioned = dtype.itemsize > 2 and dim > groups
    # Nor does the norm of one head depend on its D, where the state adds little.
    names = [n for n in floating(arguments) if n != "D" or arguments["rmsnorm_weight"] is None or heads > groups]
    return Case(
        "mamba_split_conv1d_scan_combined",
        arguments,
        call,
        lambda given: layer_loop(**given),
        lambda given: {"out": given["zxbcdt"].dtype, "final_state": weight_dtype(given["zxbcdt"].dtype)},
        arithmetic=dtype,
        differentiated=tuple(names) if is_conditioned and draw.chance(0.4) else (),
        exact_infinities=False,
    )


def layer_loop(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None,
    dt_limit: tuple[float, float],
    activation: str | None,
    rmsnorm_weight: Tensor | None,
    rmsnorm_eps: float,
    outproj_weight: Tensor | None,
    outproj_bias: Tensor | None,
    headdim: int | None,
    ngroups: int,
    norm_before_gate: bool,
    seq_idx: Tensor | None = None,
) -> Results:
    """Return the output and the last state of a layer of Mamba-2 behind its input projection."""
    zxbcdt, A = fit("zxbcdt", zxbcdt, (-1, -1, -1)), fit("A", A, (-1,))
    batch, length, columns = zxbcdt.shape
    heads = len(A)
    D = fit("D", D, (heads, -1) if isinstance(D, Tensor) and D.dim() == 2 else (heads,))
    head_dim = D.shape[1] if D.dim() == 2 else headdim
    if type(head_dim) is not int or type(ngroups) is not int or ngroups < 1:
        raise UnfitError("headdim or ngroups")
    dim = heads * head_dim
    weight = fit("conv1d_weight", conv1d_weight, (-1, -1))
    state, odd = divmod(weight.shape[0] - dim, 2 * ngroups)
    mlp, odd_mlp = divmod(columns - dim - weight.shape[0] - heads, 2)
    if odd or odd_mlp or min(state, mlp) < 0:
        raise UnfitError("sizes")
    gate, passed, z, xBC, dt = zxbcdt.split([mlp, mlp, dim, weight.shape[0], heads], -1)
    moved = conv_loop(xBC.mT, weight, conv1d_bias, seq_idx, activation=activation).mT
    x, B, C = moved.split([dim, ngroups * state, ngroups * state], -1)
    heads_of, groups_of = (batch, length, heads, head_dim), (batch, length, ngroups, state)
    found = ssd_loop(
        x.reshape(heads_of),
        dt,
        A,
        B.reshape(groups_of),
        C.reshape(groups_of),
        D,
        dt_bias=dt_bias,
        initial_state=initial_states,
        seq_idx=seq_idx,
        dt_softplus=True,
        dt_limit=dt_limit,
    )
    y, opening = found["out"].reshape(batch, length, dim), F.silu(z)
    if rmsnorm_weight is None:
        y = y * opening
    else:
        norm_weight = fit("rmsnorm_weight", rmsnorm_weight, (dim,))
        if dim % ngroups:
            raise UnfitError("ngroups")
        y = y if norm_before_gate else y * opening
        normed = normalised(y.unflatten(-1, (ngroups, -1)), None, None, rmsnorm_eps, centred=False) if dim else y
        y = normed.reshape(y.shape) * norm_weight
        y = y * opening if norm_before_gate else y
    y = torch.cat((F.silu(gate) * passed, y), -1)
    if outproj_weight is not None:
        out_weight = fit("outproj_weight", outproj_weight, (-1, mlp + dim))
        y = y @ out_weight.T
        y = y if outproj_bias is None else y + offset(outproj_bias, out_weight.shape[0])
    return {"out": y, "final_state": found["final_state"]}


def step(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of `ssd_update`."""
    groups = draw.pick((1, 1, 2))
    heads, head_dim, states = groups * draw.randint(1, 3), draw.size(30, odd=(1, 64)), draw.size(18, odd=(1, 16, 128))
    batch = draw.randint(0 if edge else 1, 4)
    dtype = draw.dtype()
    weight = torch.float64 if dtype == torch.float64 else torch.float32
    arguments: Arguments = {
        "state": draw.lay_state(draw.normal(batch, heads, head_dim, states, dtype=draw.pick((dtype, weight)))),
        "x": draw.lay(draw.normal(batch, heads, head_dim, dtype=dtype)),
        "dt": draw.lay(draw.uniform(0.01, 0.6, batch, heads, dtype=dtype)),
        "A_log": draw.lay(draw.uniform(-1, 1, heads, dtype=weight)),
        "B": draw.lay(draw.normal(batch, groups, states, dtype=dtype)),
        "C": draw.lay(draw.normal(batch, groups, states, dtype=dtype)),
        "D": draw.lay(draw.normal(*draw.pick(((heads,), (heads, head_dim))), dtype=weight)),
        "z": draw.maybe(draw.lay(draw.normal(batch, heads, head_dim, dtype=dtype))),
        "dt_bias": draw.maybe(draw.lay(draw.normal(heads, dtype=weight))),
        "dt_softplus": draw.chance(0.5),
    }

    def reference(given: Arguments) -> Results:
        x = fit("x", given["x"], (-1, -1, -1))
        batch, heads, head_dim = x.shape
        rates = fit("A_log", given["A_log"], (heads,))[:, None, None]
        D, bias = given["D"], given["dt_bias"]
        by_channel = isinstance(D, Tensor) and D.dim() == 2
        D = fit("D", D, (heads, head_dim) if by_channel else (heads,))
        wide = {
            "state": given["state"],
            "dt": fit("dt", given["dt"], (batch, heads))[..., None].expand(x.shape),
            "A": rates.expand(heads, head_dim, fit("B", given["B"], (batch, -1, -1)).shape[-1]),
            "D": D if by_channel else D[:, None].expand(heads, head_dim),
            "dt_bias": None if bias is None else fit("dt_bias", bias, (heads,))[:, None].expand(heads, head_dim),
        }
        same = {name: given[name] for name in ("x", "B", "C", "z", "dt_softplus")}
        return state_loop(**wide, **same, log_A=True)

    case = Case(
        "ssd_update",
        arguments,
        lambda given: {"out": ssd_update(**given)},
        reference,
        lambda given: {"out": given["x"].dtype},
        arithmetic=weight,
        states=("state",),
    )
    if edge:
        odd_state(draw, case, "state", ("x", "dt", "B", "C", "z", "D", "A_log", "dt_bias"))
    return case


def minimal(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of `ssd_minimal_discrete`."""
    batch, groups, head_dim = draw.randint(0 if edge else 1, 2), draw.randint(1, 2), draw.size(8)
    heads, states, block_len = groups * draw.randint(1, 2), draw.size(8), draw.randint(1, 9)
    length = block_len * draw.randint(0 if edge else 1, 4)
    dtype = draw.pick((torch.float32, torch.float64))
    arguments: Arguments = {
        "X": draw.lay(draw.normal(batch, length, heads, head_dim, dtype=dtype)),
        "A": draw.lay(-draw.uniform(0.05, 2.0, batch, length, heads, dtype=dtype)),
        "B": draw.lay(draw.normal(batch, length, groups, states, dtype=dtype)),
        "C": draw.lay(draw.normal(batch, length, groups, states, dtype=dtype)),
        "block_len": block_len,
        "initial_states": draw.maybe(draw.lay(draw.normal(batch, 1, heads, head_dim, states, dtype=dtype))),
    }

    def call(given: Arguments) -> Results:
        out, final_state = ssd_minimal_discrete(**given)
        return {"out": out, "final_state": final_state}

    def reference(given: Arguments) -> Results:
        X = fit("X", given["X"], (-1, -1, -1, -1))
        batch, length, heads, head_dim = X.shape
        A, B = fit("A", given["A"], (batch, length, heads)), fit("B", given["B"], (batch, length, -1, -1))
        groups, states = B.shape[2:]
        C, block_len = fit("C", given["C"], B.shape), given["block_len"]
        if type(block_len) is not int or block_len < 1 or length % block_len:
            raise UnfitError("block_len")
        if groups < 1 or heads % groups:
            raise UnfitError("groups")
        B, C = (each.repeat_interleave(heads // groups, 2) for each in (B, C))
        h = X.new_zeros(batch, heads, head_dim, states)
        if given["initial_states"] is not None:
            h = fit("initial_states", given["initial_states"], (batch, 1, *h.shape[1:]))[:, 0]
        ys = []
        for t in range(length):
            h = torch.exp(A[:, t, :, None, None]) * h + X[:, t, ..., None] * B[:, t, :, None]
            ys.append((h * C[:, t, :, None]).sum(-1))
        return {"out": torch.stack(ys, 1) if ys else X, "final_state": h}

    return Case(
        "ssd_minimal_discrete",
        arguments,
        call,
        reference,
        lambda given: {"out": given["X"].dtype, "final_state": given["X"].dtype},
        arithmetic=dtype,
        differentiated=floating(arguments) if draw.chance(0.4) else (),
        exact_infinities=False,
        may_refuse=len({each.dtype for each in arguments.values() if isinstance(each, Tensor)}) > 1,
    )


def chunk_steps(draw: Draw, *, edge: bool) -> Case:
    """Draw a scan by `chunk_state`, `state_passing` and `chunk_scan`, and by `chunk_state_varlen`."""
    groups = draw.pick((1, 1, 2))
    heads, head_dim, states = groups * draw.randint(1, 2), draw.size(8), draw.size(8)
    size, chunks = draw.randint(1, 6), draw.randint(1, 4)
    length = draw.randint((chunks - 1) * size + 1, chunks * size)
    bounds = [0, length]  # one sequence: the states before chunks of several would need their indices
    if edge and draw.chance(0.3):
        bounds.append(draw.pick((-1, length + 1)))
    arguments: Arguments = {
        "x": draw.lay(draw.normal(1, length, heads, head_dim)),
        "dt": draw.uniform(0.01, 0.6, 1, length, heads),
        "A": -draw.uniform(0.05, 3.0, heads),
        "B": draw.lay(draw.normal(1, length, groups, states)),
        "C": draw.lay(draw.normal(1, length, groups, states)),
        "D": draw.maybe(draw.normal(*draw.pick(((heads,), (heads, head_dim))))),
        "z": draw.maybe(draw.lay(draw.normal(1, length, heads, head_dim))),
        "cu_seqlens": torch.tensor(bounds, dtype=torch.int32),
    }
    shapes = {name: getattr(value, "shape", None) for name, value in arguments.items() if name != "cu_seqlens"}

    def call(given: Arguments) -> Results:
        x, B, C = (given[name] for name in ("x", "B", "C"))
        missing = chunks * size - given["dt"].shape[1]
        dt = F.pad(given["dt"], (0, 0, 0, missing)).mT.unflatten(-1, (chunks, size))
        sums = (dt * given["A"][:, None, None]).cumsum(-1)
        added = ssd_chunks.chunk_state(B, x, dt, sums)
        before, last = ssd_chunks.state_passing(added.flatten(-2), sums[..., -1])
        before = before.unflatten(-1, added.shape[-2:])
        out = ssd_chunks.chunk_scan(B, C, x, dt, sums, before, given["D"], given["z"])
        varlen = ssd_chunks.chunk_state_varlen(B[0], x[0], dt[0], sums[0], given["cu_seqlens"], before[0])
        return {"out": out, "final_state": last.unflatten(-1, added.shape[-2:]), "varlen_states": varlen}

    def reference(given: Arguments) -> Results:
        scanned = {name: given[name] for name in ("x", "dt", "A", "B", "C", "D", "z")}
        if any(getattr(given[name], "shape", None) != shape for name, shape in shapes.items()):
            return {}  # these functions broadcast, as upstream's references
        scanned |= {"dt_softplus": False, "dt_limit": (-math.inf, math.inf)}
        found = ssd_loop(**scanned)
        states = states_after_each(scanned, given["cu_seqlens"])
        return found | {"varlen_states": states}

    def dtypes(given: Arguments) -> dict[str, torch.dtype]:
        is_wide = any(given[name].dtype == torch.float64 for name in ("x", "dt", "A"))
        states = torch.float64 if is_wide else torch.float32
        return {"out": given["x"].dtype, "final_state": states, "varlen_states": states}

    return Case(
        "chunk steps",
        arguments,
        call,
        reference,
        dtypes,
        exact_infinities=False,
    )
