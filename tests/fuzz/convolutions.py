"""Calls of the causal convolution: whole sequences, both directions, and steps from a stored state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fuzz.case import Arguments, Case, Results, UnfitError, fit
from fuzz.draws import Draw
from scanlab.integrations.causal_conv1d.causal_conv1d_interface import causal_conv1d_fn
from scanlab.runtime import ops

ACTIVATIONS = (None, "silu", "swish")


def conv_loop(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    activation: str | None = None,
    reverse: bool = False,
) -> Tensor:
    """Return x convolved, one time step and one tap after the other."""
    x = fit("x", x, (-1, -1, -1))
    batch, dim, length = x.shape
    weight = fit("weight", weight, (dim, -1))
    width = weight.shape[1]
    if not 1 <= width <= 16 or activation not in ACTIVATIONS:
        raise UnfitError("width or activation")
    offset = torch.zeros(dim, dtype=x.dtype) if bias is None else fit("bias", bias, (dim,))
    if seq_idx is not None:
        fit("seq_idx", seq_idx, (batch, length), integers=True)
        if initial_states is not None:
            raise UnfitError("seq_idx and initial_states")
    before = None
    if initial_states is not None:
        before = fit("initial_states", initial_states, (batch, dim, width - 1))
    outs = []
    for t in range(length):
        total = offset.expand(batch, dim)
        for k in range(width):
            at = t + (width - 1 - k if reverse else k - width + 1)
            if 0 <= at < length:
                tap = weight[:, k] * x[:, :, at]
                if seq_idx is not None:
                    tap = torch.where((seq_idx[:, at] == seq_idx[:, t])[:, None], tap, 0.0)
                total = total + tap
            elif before is not None:
                place = at - length if reverse else at + width - 1
                total = total + weight[:, k] * before[:, :, place]
        out = F.silu(total) if activation else total
        outs.append(out if seq_idx is None else torch.where((seq_idx[:, t] >= 0)[:, None], out, 0.0))
    return torch.stack(outs, -1) if outs else torch.zeros_like(x)


def sequences(draw: Draw, batch: int, length: int) -> Tensor:
    """Draw the index of the sequence of each step, with some padding."""
    return torch.cumsum(draw.uniform(0, 1, batch, length).gt(0.8), 1).int() - draw.pick((0, 1))


def weights(draw: Draw, dim: int, dtype: torch.dtype) -> Arguments:
    """Draw weight and bias, in the dtype of x or another."""
    other = draw.dtype() if draw.chance(0.2) else dtype
    width = draw.pick((1, 2, 3, 4, 4, 4, 5, 8, 16))
    weight, bias = draw.normal(dim, width, dtype=other), draw.maybe(draw.normal(dim, dtype=other))
    return {"weight": draw.lay(weight), "bias": None if bias is None else draw.lay(bias)}


def signal(draw: Draw, *, edge: bool) -> Tensor:
    """Draw x (batch, dim, length)."""
    batch, dim, length = (
        draw.randint(1, 3),
        draw.size(40, odd=(1, 8, 16, 64, 65)),
        draw.size(40, odd=(1, 2, 3, 64, 257)),
    )
    if edge and draw.chance(0.3):
        batch, dim, length = draw.pick(((0, dim, length), (batch, 0, length), (batch, dim, 0)))
    x = draw.normal(batch, dim, length, dtype=draw.dtype())
    return draw.lay(draw.spoil(x) if edge and draw.chance(0.5) else x)


def convolution(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of `causal_conv1d`."""
    x = signal(draw, edge=edge)
    arguments: Arguments = {"x": x, **weights(draw, x.shape[1], x.dtype)}
    before = (*x.shape[:2], arguments["weight"].shape[1] - 1)
    match draw.randrange(4):
        case 0:
            arguments["seq_idx"] = draw.lay(sequences(draw, x.shape[0], x.shape[2]))
        case 1:
            arguments["initial_states"] = draw.lay(draw.normal(*before, dtype=x.dtype))
    arguments |= {"activation": draw.pick(ACTIVATIONS), "reverse": draw.chance(0.4)}
    return Case(
        "causal_conv1d",
        arguments,
        lambda given: {"out": ops.causal_conv1d(given["x"], given["weight"], given["bias"], **_named(given))},
        lambda given: {"out": conv_loop(**given)},
        lambda given: {"out": given["x"].dtype},
        arithmetic=torch.float64 if x.dtype == torch.float64 else torch.float32,
        differentiated=_differentiated(draw, arguments),
    )


def _named(arguments: Arguments) -> Arguments:
    return {name: value for name, value in arguments.items() if name not in ("x", "weight", "bias")}


def _differentiated(draw: Draw, arguments: Arguments) -> tuple[str, ...]:
    if draw.chance(0.5):
        return ()
    return tuple(n for n, v in arguments.items() if isinstance(v, Tensor) and v.is_floating_point())


def bidirectional_convolution(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of `causal_conv1d_bidirectional`."""
    x = signal(draw, edge=edge)
    forward = weights(draw, x.shape[1], x.dtype)
    width = forward["weight"].shape[1]
    arguments: Arguments = {
        "x": x,
        **forward,
        "weight_reverse": draw.lay(draw.normal(x.shape[1], width, dtype=forward["weight"].dtype)),
        "bias_reverse": draw.maybe(draw.lay(draw.normal(x.shape[1], dtype=x.dtype))),
        "activation": draw.pick(ACTIVATIONS),
    }

    def call(given: Arguments) -> Results:
        positional = [given[name] for name in ("x", "weight", "bias", "weight_reverse", "bias_reverse")]
        outs = ops.causal_conv1d_bidirectional(*positional, activation=given["activation"])
        return dict(zip(("out", "out_reverse"), outs, strict=True))

    def reference(given: Arguments) -> Results:
        x, activation = given["x"], given["activation"]
        out = conv_loop(x, given["weight"], given["bias"], activation=activation)
        other, bias = fit("weight_reverse", given["weight_reverse"], given["weight"].shape), given["bias_reverse"]
        return {"out": out, "out_reverse": conv_loop(x, other, bias, activation=activation, reverse=True)}

    return Case(
        "causal_conv1d_bidirectional",
        arguments,
        call,
        reference,
        lambda given: {"out": given["x"].dtype, "out_reverse": given["x"].dtype},
        arithmetic=torch.float64 if x.dtype == torch.float64 else torch.float32,
        differentiated=_differentiated(draw, arguments),
    )


def final_states(x: Tensor, width: int, initial_states: Tensor | None, seq_idx: Tensor | None) -> Tensor:
    """Return the last width - 1 inputs of the last sequence, those before the first among them."""
    before = x.new_zeros(*x.shape[:2], width - 1) if initial_states is None else initial_states
    whole = torch.cat((before, x), -1)
    if seq_idx is not None and x.shape[-1]:
        for item, indices in enumerate(seq_idx.tolist()):
            for step, index in enumerate([indices[0]] * (width - 1) + indices):
                if index != indices[-1] or index < 0 or (step < width - 1 and len(set(indices)) > 1):
                    whole[item, :, step] = 0
    return whole[..., whole.shape[-1] - (width - 1) :]


def function(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of `causal_conv1d_fn` as other packages make it."""
    x = signal(draw, edge=edge)
    arguments: Arguments = {"x": x, **weights(draw, x.shape[1], x.dtype)}
    width = arguments["weight"].shape[1]
    finals = draw.chance(0.5)
    if draw.chance(0.4):
        arguments["seq_idx"] = sequences(draw, x.shape[0], x.shape[2])
    elif draw.chance(0.5):
        arguments["initial_states"] = draw.lay(draw.normal(*x.shape[:2], width - 1, dtype=x.dtype))
    arguments |= {"activation": draw.pick(ACTIVATIONS), "return_final_states": finals}

    def call(given: Arguments) -> Results:
        found = causal_conv1d_fn(**given)
        return dict(zip(("out", "final_states"), found if isinstance(found, tuple) else (found,), strict=False))

    def reference(given: Arguments) -> Results:
        out = conv_loop(**{name: value for name, value in given.items() if name != "return_final_states"})
        if not given["return_final_states"]:
            return {"out": out}
        return {
            "out": out,
            "final_states": final_states(
                given["x"], given["weight"].shape[1], given.get("initial_states"), given.get("seq_idx")
            ),
        }

    def dtypes(given: Arguments) -> dict[str, torch.dtype]:
        dtype = given["x"].dtype
        return {"out": dtype, "final_states": dtype} if given["return_final_states"] else {"out": dtype}

    return Case(
        "causal_conv1d_fn",
        arguments,
        call,
        reference,
        dtypes,
        arithmetic=torch.float64 if x.dtype == torch.float64 else torch.float32,
        differentiated=_differentiated(draw, arguments),
    )


def update_loop(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
    activation: str | None = None,
) -> Results:
    """Return the output and the state after the steps of x, one row and one step after the other."""
    if not isinstance(x, Tensor) or x.dim() not in (2, 3):
        raise UnfitError("x")
    single = x.dim() == 2
    x = fit("x", x, (-1,) * x.dim())
    steps = x[..., None] if single else x
    batch, dim, length = steps.shape
    weight = fit("weight", weight, (dim, -1))
    width = weight.shape[1]
    rows = list(range(batch))
    if conv_state_indices is not None:
        rows = fit("conv_state_indices", conv_state_indices, (batch,), integers=True).tolist()
    state = fit("conv_state", conv_state, (batch if conv_state_indices is None else -1, dim, -1)).clone()
    slots = state.shape[2]
    first = [0] * batch
    if cache_seqlens is not None:
        first = fit("cache_seqlens", cache_seqlens, (batch,), integers=True).tolist()
    if not 1 <= width <= 16 or activation not in ACTIVATIONS or slots < max(width - 1, cache_seqlens is not None):
        raise UnfitError("width, activation or slots")
    expect_rows(rows, len(state))
    offset = torch.zeros(dim, dtype=x.dtype) if bias is None else fit("bias", bias, (dim,))
    out = torch.zeros_like(steps)
    for entry, row in enumerate(rows):
        if row < 0:
            continue
        if cache_seqlens is None:
            history = torch.cat((state[row], steps[entry]), -1)
        else:
            before = [state[row, :, (first[entry] + k) % slots] for k in range(1 - width, 0)]
            history = torch.stack((*before, *steps[entry].unbind(-1)), -1) if before or length else state[row, :, :0]
        base = history.shape[1] - length
        for t in range(length):
            total = offset.clone()
            for k in range(width):
                total = total + weight[:, k] * history[:, base + t + k - width + 1]
            out[entry, :, t] = F.silu(total) if activation else total
            if cache_seqlens is not None:
                state[row, :, (first[entry] + t) % slots] = steps[entry, :, t]
        if cache_seqlens is None:
            state[row] = history[:, history.shape[1] - slots :]
    return {"out": out[..., 0] if single else out, "conv_state": state}


def update(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of `causal_conv1d_update`."""
    batch, dim = draw.randint(1, 4), draw.size(40, odd=(1, 16, 64, 65))
    if edge and draw.chance(0.2):
        batch, dim = draw.pick(((0, dim), (batch, 0)))
    dtype = draw.dtype()
    shape = (batch, dim) if draw.chance(0.5) else (batch, dim, draw.randint(0 if edge else 1, 7))
    arguments: Arguments = {"x": draw.lay(draw.normal(*shape, dtype=dtype)), "conv_state": None}
    arguments |= weights(draw, dim, dtype)
    slots = max(1, arguments["weight"].shape[1] - 1 + draw.randint(0, 3))
    rows = batch
    if draw.chance(0.4):
        rows = batch + draw.randint(0, 3)
        picked = torch.randperm(rows, generator=draw.generator)[:batch].int()
        if edge and draw.chance(0.1):
            picked[:1] = picked[-1:]  # two sequences of one row
        padding = draw.uniform(0, 1, batch) < 0.2
        arguments["conv_state_indices"] = draw.lay_state(torch.where(padding, -1, picked).int())
    if draw.chance(0.4):
        arguments["cache_seqlens"] = draw.lay(draw.integers(0, 3 * slots, batch))
    arguments["conv_state"] = draw.lay_state(draw.normal(rows, dim, slots, dtype=dtype))
    arguments["activation"] = draw.pick(ACTIVATIONS)
    case = Case(
        "causal_conv1d_update",
        arguments,
        lambda given: {"out": ops.causal_conv1d_update(**given)},
        lambda given: update_loop(**given),
        lambda given: {"out": given["x"].dtype},
        arithmetic=torch.float64 if dtype == torch.float64 else torch.float32,
        states=("conv_state",),
    )
    if edge:
        odd_state(draw, case, "conv_state", ("x", "weight", "bias"))
    return case


def expect_rows(rows: list[int], count: int) -> None:
    """Raise UnfitError where a row is beyond a state of `count` rows, or two sequences have the same."""
    present = [row for row in rows if row >= 0]
    if any(row >= count for row in present) or len(set(present)) < len(present):
        raise UnfitError("a row beyond the state, or twice")


def odd_state(draw: Draw, case: Case, name: str, readers: tuple[str, ...]) -> None:
    """Make the elements of a state overlap, or let an argument lie in its memory."""
    state = case.arguments[name]
    if draw.chance(0.4) and state.numel() > 1:
        strides = [draw.pick((0, 1, 1, 2)) for _ in state.shape]
        reach = sum((size - 1) * stride for size, stride in zip(state.shape, strides, strict=True))
        overlapping = draw.normal(reach + 1, dtype=state.dtype).as_strided(state.shape, strides)
        case.arguments[name] = overlapping
        case.must_refuse = _overlaps(overlapping)
        case.may_refuse = True
        case.note = "overlapping state"
    elif draw.chance(0.5):
        for reader in readers:
            tensor = case.arguments.get(reader)
            fits = isinstance(tensor, Tensor) and tensor.dtype == state.dtype and 0 < tensor.numel() <= state.numel()
            if fits and state.is_contiguous() and draw.chance(0.5):
                start = draw.randint(0, state.numel() - tensor.numel())
                case.arguments[reader] = state.flatten()[start : start + tensor.numel()].view(tensor.shape)
                case.note += f" {reader} inside {name}"


def _overlaps(tensor: Tensor) -> bool:
    index = torch.zeros((), dtype=torch.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        index = index[..., None] + torch.arange(size) * stride
    return bool(index.unique().numel() < tensor.numel())
