"""Stand-ins of the compiled modules `selective_scan_cuda` and `causal_conv1d_cuda`, with their call signatures.

Their Python wrappers are autograd functions that call these by position. The number of arguments tells the release
of causal_conv1d: it grew from one to the next, and since 1.5.1 results are written into tensors that are passed in.

Source: state-spaces/mamba@e9594ce, csrc/selective_scan/selective_scan.cpp; Dao-AILab/causal-conv1d@0d2252d and
earlier, csrc/causal_conv1d.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.errors import ProblemError
from scanlab.runtime import ops as mixer
from scanlab.runtime.dispatch import selective_scan_fn
from scanlab_kernels.causal_conv1d.arguments import Activation
from scanlab_kernels.checks import expect_apart, expect_no_overlap, expect_place


def fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    """Return `selective_scan_cuda.fwd`: [out, x] or, with z, [out, x, out_z]; out is not gated, out_z is.

    x (batch, dim, 1, 2 state) holds the last state at every other place, where its readers look for it; the
    products of decays between, which only the CUDA backward pass reads, are NaN.
    """
    # Widening is exact, so that both outputs are rounded once from the same sums.
    wide = torch.promote_types(u.dtype, torch.float32)
    u_wide, delta, B, C = (each if each.dim() == 2 else each.to(wide) for each in (u, delta, B, C))
    result = selective_scan_fn(u_wide, delta, A, B, C, D, None, delta_bias, delta_softplus, return_last_state=True)
    y, last_state = result
    x = torch.full((*last_state.shape[:2], 1, 2 * last_state.shape[2]), torch.nan, dtype=last_state.dtype)
    x[:, :, 0, 1::2] = last_state
    outs = [y.to(u.dtype), x]
    return outs if z is None else [*outs, (y * F.silu(z.to(wide))).to(u.dtype)]


def bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    out: Tensor | None,
    dz: Tensor | None,
    delta_softplus: bool,
    recompute_out_z: bool,
) -> list[Tensor | None]:
    """Return `selective_scan_cuda.bwd`: [du, ddelta, dA, dB, dC, dD, ddelta_bias], dz with z, and out_z if asked for.

    dz is written into the tensor given for it. x and out, which the forward pass kept, are not needed.
    """
    u_, delta_, A_, B_, C_ = (_leaf(each) for each in (u, delta, A, B, C))
    D_, z_, delta_bias_ = (None if each is None else _leaf(each) for each in (D, z, delta_bias))
    with torch.enable_grad():
        out_z: Any = selective_scan_fn(u_, delta_, A_, B_, C_, D_, z_, delta_bias_, delta_softplus)
    *gradients, grad_z = _gradients([out_z], (u_, delta_, A_, B_, C_, D_, delta_bias_, z_), [dout])
    if z is None:
        return gradients
    if dz is not None:
        expect_place("dz", dz, tuple(z.shape), (z.dtype, u.dtype), z.device)
    gradients.append(grad_z if dz is None else dz.copy_(grad_z))
    return [*gradients, out_z.detach()] if recompute_out_z else gradients


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def _gradients(outputs: Sequence[Tensor], leaves: Sequence[Tensor | None], upstream: Sequence[Tensor]) -> list[Any]:
    """Return the gradients of the leaves, None for absent ones."""
    found = iter(torch.autograd.grad(outputs, [each for each in leaves if each is not None], upstream))
    return [None if each is None else next(found) for each in leaves]


def causal_conv1d_fwd(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor | None:
    """Return the output of `causal_conv1d_cuda.causal_conv1d_fwd`, or None where a tensor for it was passed.

    rest is (silu) in 1.0, (seq_idx, silu) in 1.1, (seq_idx, initial_states, final_states_out, silu) up to 1.5.0, and
    (seq_idx, initial_states, out, final_states_out, silu) since.
    """
    match rest:
        case (silu,):
            seq_idx = initial_states = out = final_states_out = None
        case (seq_idx, silu):
            initial_states = out = final_states_out = None
        case (seq_idx, initial_states, final_states_out, silu):
            out = None
        case (seq_idx, initial_states, out, final_states_out, silu):
            pass
        case _:
            raise _no_such_call("causal_conv1d_fwd", 3 + len(rest), "4, 5, 7 or 8")
    y = mixer.causal_conv1d(
        x, weight, bias, seq_idx=seq_idx, initial_states=initial_states, activation=_activation(silu)
    )
    if out is not None:
        expect_place("out", out, tuple(x.shape), x.dtype, x.device)
    if final_states_out is not None:
        final = mixer.final_states(x, weight.shape[1], initial_states, seq_idx)
        expect_place("final_states_out", final_states_out, tuple(final.shape), final.dtype, final.device)
        expect_apart(out=out, final_states_out=final_states_out)
        final_states_out.copy_(final)
    if out is None:
        return y
    out.copy_(y)
    return None


def causal_conv1d_bwd(
    x: Tensor, weight: Tensor, bias: Tensor | None, dout: Tensor, *rest: Any
) -> tuple[Tensor | None, ...] | None:
    """Return the gradients (dx, dweight, dbias[, dinitial_states]), or None where tensors for them were passed.

    rest is (dx, silu) in 1.0, (seq_idx, dx, silu) in 1.1, (seq_idx, initial_states, dfinal_states, dx,
    return_dinitial_states, silu) up to 1.5.0, and (seq_idx, initial_states, dfinal_states, dx, dweight, dbias,
    dinitial_states, silu) since, which are written to.
    """
    match rest:
        case (dx, silu):
            return conv_gradients(x, weight, bias, dout, None, None, None, dx, False, silu)[:3]
        case (seq_idx, dx, silu):
            return conv_gradients(x, weight, bias, dout, seq_idx, None, None, dx, False, silu)[:3]
        case (seq_idx, initial_states, dfinal_states, dx, return_dinitial, silu):
            return conv_gradients(
                x, weight, bias, dout, seq_idx, initial_states, dfinal_states, dx, return_dinitial, silu
            )
        case (seq_idx, initial_states, dfinal_states, *places, silu) if len(places) == 4:
            wants_initial = places[3] is not None
            found = conv_gradients(
                x, weight, bias, dout, seq_idx, initial_states, dfinal_states, None, wants_initial, silu
            )
            _write_gradients(places, found, x.dtype)
            return None
    raise _no_such_call("causal_conv1d_bwd", 4 + len(rest), "6, 7, 10 or 12")


def _write_gradients(places: Sequence[Tensor | None], gradients: Sequence[Tensor | None], dtype: torch.dtype) -> None:
    """Write dx, dweight, dbias and dinitial_states into the places that are there, all of them or none.

    Upstream has those of the weights in float32 and the others in the dtype of x; that of the gradient is as good.
    """
    names, wide = ("dx", "dweight", "dbias", "dinitial_states"), (dtype, torch.float32, torch.float32, dtype)
    written: dict[str, tuple[Tensor, Tensor]] = {}
    for name, place, gradient, other in zip(names, places, gradients, wide, strict=True):
        if place is not None and gradient is not None:
            expect_place(name, place, tuple(gradient.shape), (gradient.dtype, other), gradient.device)
            written[name] = place, gradient
    expect_apart(**{name: place for name, (place, _) in written.items()})
    for place, gradient in written.values():
        place.copy_(gradient)


def conv_gradients(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    dfinal_states: Tensor | None,
    dx: Tensor | None,
    return_dinitial_states: bool,
    silu: bool,
) -> tuple[Tensor | None, ...]:
    """Return (dx, dweight, dbias, dinitial_states); dx is written into the tensor given for it."""
    x_, weight_ = _leaf(x), _leaf(weight)
    bias_, initial_ = (None if each is None else _leaf(each) for each in (bias, initial_states))
    with torch.enable_grad():
        outputs = [
            mixer.causal_conv1d(
                x_, weight_, bias_, seq_idx=seq_idx, initial_states=initial_, activation=_activation(silu)
            )
        ]
        upstream = [dout]
        if dfinal_states is not None:
            outputs.append(mixer.final_states(x_, weight.shape[1], initial_, seq_idx))
            upstream.append(dfinal_states)
    grad_x, grad_weight, grad_bias, grad_initial = _gradients(outputs, (x_, weight_, bias_, initial_), upstream)
    if dx is not None:
        expect_place("dx", dx, tuple(x.shape), x.dtype, x.device)
    grad_x = grad_x if dx is None else dx.copy_(grad_x)
    return grad_x, grad_weight, grad_bias, grad_initial if return_dinitial_states else None


def causal_conv1d_update(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any
) -> Tensor | None:
    """Return the output of `causal_conv1d_cuda.causal_conv1d_update`, or None where a tensor for it was passed.

    rest is (silu) up to 1.1, (silu, cache_seqlens) and then (silu, cache_seqlens, conv_state_indices) up to 1.5.0,
    and (out, silu, cache_seqlens, conv_state_indices) since.
    """
    out = cache_seqlens = conv_state_indices = None
    match rest:
        case (silu,):
            pass
        case (silu, cache_seqlens):
            pass
        case (silu, cache_seqlens, conv_state_indices):
            pass
        case (out, silu, cache_seqlens, conv_state_indices):
            pass
        case _:
            raise _no_such_call("causal_conv1d_update", 4 + len(rest), "5, 6, 7 or 8")
    if out is not None:
        expect_place("out", out, tuple(x.shape), x.dtype, x.device)
        expect_no_overlap("conv_state", conv_state)
        expect_apart(out=out, conv_state=conv_state)
    y = mixer.causal_conv1d_update(
        x,
        conv_state,
        weight,
        bias,
        activation=_activation(silu),
        cache_seqlens=cache_seqlens,
        conv_state_indices=conv_state_indices,
    )
    if out is None:
        return y
    out.copy_(y)
    return None


def _activation(silu: bool) -> Activation:
    return "silu" if silu else None


def _no_such_call(name: str, given: int, known: str) -> ProblemError:
    return ProblemError(f"causal_conv1d_cuda.{name} with {given} arguments: the releases up to 1.6.1 pass {known}.")
