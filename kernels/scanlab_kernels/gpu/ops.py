"""The mixer's GPU kernels as torch ops: under the names and with the arguments of the native ones.

Both sets of ops differ in their namespace alone, so that a caller needs to know nothing but which of them serves. In
Triton's interpreter these take tensors on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scanlab_kernels.add_norm import triton as triton_add_norm
from scanlab_kernels.autograd import refusing
from scanlab_kernels.causal_conv1d import triton_backward as triton_causal_conv1d_backward
from scanlab_kernels.causal_conv1d import triton_forward as triton_causal_conv1d
from scanlab_kernels.causal_conv1d import triton_update as triton_causal_conv1d_update
from scanlab_kernels.causal_conv1d.triton_tile import Way, sequence, way
from scanlab_kernels.gpu import version as triton_version
from scanlab_kernels.gpu.launch_cache import Launch, queue, run
from scanlab_kernels.state_update import triton as triton_selective_state_update
from scanlab_kernels.state_update.mixer_step import composed

NAMESPACE = "scanlab_mixer_triton"
KEY = "CPU" if triton_version.interpreted() else "CUDA"

library = torch.library.Library(NAMESPACE, "DEF")


def define(
    schema: str,
    compute: Callable[..., Any],
    shapes: Callable[..., Any],
    keep_and_gradients: tuple[Callable[..., None], Callable[..., Any]] | None = None,
) -> None:
    """Add an op that `compute` computes, and whose outputs are like the empty ones of `shapes`.

    keep_and_gradients  what its gradients need of it, and these; without them no graph is recorded
    """
    library.define(schema)
    name = schema.partition("(")[0]
    library.impl(name, compute, KEY)
    torch.library.register_fake(f"{NAMESPACE}::{name}", shapes, lib=library)
    if keep_and_gradients is None:
        library.impl(name, torch.library.fallthrough_kernel, "Autograd")
    else:
        keep, gradients = keep_and_gradients
        torch.library.register_autograd(f"{NAMESPACE}::{name}", gradients, setup_context=keep, lib=library)


def changed(state: Tensor) -> None:
    """Let torch know that a kernel wrote to `state`."""
    if not state.is_inference():
        torch.autograd.graph.increment_version(state)


def conv_outputs(x: Tensor, weight: Tensor | None, bias: Tensor | None, weight_back: Tensor | None, *rest: Any) -> Any:
    """Empty tensors like the outputs ahead and in reverse; without elements where there is no weight."""
    return tuple(x.new_empty(0) if each is None else torch.empty_like(x) for each in (weight, weight_back))


def conv(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    weight_back: Tensor | None,
    bias_back: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """The short convolution ahead, in reverse, or both."""
    out, out_back = conv_outputs(x, weight, bias, weight_back)

    def launch() -> Launch:
        of = sequence(x, seq_idx, initial_states, reverse=weight is None)
        ways = way(weight, bias, out), way(weight_back, bias_back, out_back)
        return triton_causal_conv1d.forward(of, *ways, silu)

    ahead = None if weight is None else Way(weight, bias, out, None)
    back = None if weight_back is None else Way(weight_back, bias_back, out_back, None)
    given = (x, seq_idx, weight, bias, out, weight_back, bias_back, out_back, initial_states)
    queue(launch, (x, seq_idx, ahead, back), given, ("conv", silu))
    return out, out_back


def conv_gradients(
    grad: Tensor | None,
    grad_back: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    weight_back: Tensor | None,
    bias_back: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
) -> tuple[Tensor, ...]:
    """Empty tensors like the gradients of x, the weights and biases, and the initial states."""
    weights = (weight, bias, weight_back, bias_back, initial_states)
    return (torch.empty_like(x), *(x.new_empty(0) if each is None else torch.empty_like(each) for each in weights))


def conv_backward(
    grad: Tensor | None,
    grad_back: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    weight_back: Tensor | None,
    bias_back: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
) -> tuple[Tensor, ...]:
    """The gradients of the convolution, the weights' summed over batch and time."""
    of = sequence(x, seq_idx, initial_states, reverse=weight is None)
    shares = [
        None if each is None else triton_causal_conv1d_backward.empty_sums(of, each) for each in (weight, weight_back)
    ]
    ahead = way(weight, bias, grad, shares[0])
    back = way(weight_back, bias_back, grad_back, shares[1])
    launch, grad_whole = triton_causal_conv1d_backward.backward(of, ahead, back, silu)
    run(launch, x)
    found = conv_gradients(grad, grad_back, x, weight, bias, weight_back, bias_back, seq_idx, initial_states, silu)
    for parts, by_weight, by_bias, has_bias in (
        (shares[0], found[1], found[2], bias is not None),
        (shares[1], found[3], found[4], bias_back is not None),
    ):
        if parts is not None:
            whole = parts.sum(0)
            by_weight.copy_(whole[:-1].T)
            if has_bias:
                by_bias.copy_(whole[-1])
    if initial_states is None:
        return (grad_whole, *found[1:])
    found[0].copy_(grad_whole.narrow(2, of.before, x.shape[2]))
    found[5].copy_(grad_whole[..., : of.before] if of.before else grad_whole[..., x.shape[2] :])
    return found


def keep_conv(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep what the gradients of a convolution need: its inputs."""
    ctx.save_for_backward(*inputs[:-1])
    ctx.silu = inputs[-1]


def gradients_of_conv(ctx: Any, grad: Tensor, grad_back: Tensor) -> tuple[Any, ...]:
    """The gradients of the convolution, one for each of its arguments."""
    tensors = ctx.saved_tensors
    given = (None if tensors[1] is None else grad, None if tensors[3] is None else grad_back)
    found = torch.ops.scanlab_mixer_triton.causal_conv1d_backward(*given, *tensors, ctx.silu)
    by_weights = (None if tensor is None else each for tensor, each in zip(tensors[1:5], found[1:5], strict=True))
    return (found[0], *by_weights, None, None if tensors[6] is None else found[5], None)


def norm_outputs(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    wide_total: bool,
) -> tuple[Tensor, Tensor]:
    """Empty dense tensors like the normalised sum and the sum."""
    dtype = torch.float32 if wide_total else hidden.dtype
    return hidden.new_empty(hidden.shape), hidden.new_empty(hidden.shape, dtype=dtype)


def add_norm(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    wide_total: bool,
) -> tuple[Tensor, Tensor]:
    """The normalised sum of hidden and residual, and the sum."""
    out, total = norm_outputs(hidden, residual, weight, bias, eps, centred, wide_total)
    if out.numel():
        given = (hidden, residual, weight, bias, out, total)
        queue(
            lambda: triton_add_norm.forward(hidden, residual, weight, bias, eps, centred, out, total),
            given,
            given,
            ("norm", eps, centred),
        )
    return out, total


def norm_gradients(
    grad_out: Tensor, grad_total: Tensor | None, total: Tensor, weight: Tensor, eps: float, centred: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Empty tensors like the gradients of the sum, the weight, and a bias like it."""
    return total.new_empty(total.shape), torch.empty_like(weight), torch.empty_like(weight)


def norm_backward(
    grad_out: Tensor, grad_total: Tensor | None, total: Tensor, weight: Tensor, eps: float, centred: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the sum, of the weight, and of a bias."""
    grad, by_weight, by_bias = norm_gradients(grad_out, grad_total, total, weight, eps, centred)
    if not total.numel():
        return grad, by_weight.zero_(), by_bias.zero_()
    launch, sums = triton_add_norm.backward(grad_out, grad_total, total, weight, eps, centred, grad)
    run(launch, total)
    whole = sums.sum(0)
    return grad, by_weight.copy_(whole[0]), by_bias.copy_(whole[1])


def keep_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep what the gradients of a norm need: the sum as it was returned, and the weight."""
    hidden, residual, weight, bias, ctx.eps, ctx.centred, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], weight)
    ctx.dtypes = [None if each is None else each.dtype for each in (hidden, residual, bias)]


def gradients_of_norm(ctx: Any, grad_out: Tensor | None, grad_total: Tensor | None) -> tuple[Any, ...]:
    """The gradients of a norm, one for each of its arguments."""
    total, weight = ctx.saved_tensors
    grad, by_weight, by_bias = grad_total, None, None
    if grad_out is not None:
        grad, by_weight, by_bias = torch.ops.scanlab_mixer_triton.add_norm_backward(
            grad_out, grad_total, total, weight, ctx.eps, ctx.centred
        )
    like_hidden, like_residual, like_bias = (
        None if each is None or dtype is None else each.to(dtype)
        for each, dtype in zip((grad, grad, by_bias), ctx.dtypes, strict=True)
    )
    return like_hidden, like_residual, by_weight, like_bias, None, None, None


def conv_update_output(x: Tensor, *rest: Any) -> Tensor:
    """An empty tensor like x."""
    return torch.empty_like(x)


def conv_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
    silu: bool,
) -> Tensor:
    """The next steps of a convolution; the state is brought up to date."""
    out = torch.empty_like(x)
    given = (x, conv_state, weight, bias, cache_seqlens, conv_state_indices, out)
    queue(
        lambda: triton_causal_conv1d_update.step(*given[:6], silu, out),
        given,
        given,
        ("conv step", silu),
    )
    changed(conv_state)
    return out


def state_update_output(state: Tensor, x: Tensor, *rest: Any) -> Tensor:
    """An empty tensor like x."""
    return torch.empty_like(x)


def state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    state_batch_indices: Tensor | None,
    log_A: bool,
) -> Tensor:
    """One step of the scan; the state is brought up to date."""
    out = torch.empty_like(x)
    given = (state, x, dt, A, B, C, D, z, dt_bias, state_batch_indices, out)
    queue(
        lambda: triton_selective_state_update.step(*given[:9], dt_softplus, state_batch_indices, log_A, out),
        given,
        given,
        ("scan step", dt_softplus, log_A),
    )
    changed(state)
    return out


def mixer_step_output(projected: Tensor, *rest: Any) -> Tensor:
    """An empty tensor like the half of `projected`."""
    return projected.new_empty((projected.shape[0], projected.shape[1] // 2))


def mixer_step(*arguments: Any) -> Tensor:
    """One token through a whole mixer; both states are brought up to date."""
    return composed(
        lambda x, held, weight, bias: conv_update(x, held, weight, bias, None, None, True),
        lambda held, u, dt, A_log, B, C, D, z, bias: state_update(
            held, u, dt, A_log, B, C, D, z, bias, True, None, True
        ),
        *arguments,
    )


NOT_TWICE = refusing("the mixer's GPU ops have no second derivatives; call inside scanlab.runtime.ops.in_torch().")
CONV = (
    "Tensor x, Tensor? weight, Tensor? bias, Tensor? weight_back, Tensor? bias_back, Tensor? seq_idx,"
    " Tensor? initial_states, bool silu"
)

define(
    f"causal_conv1d({CONV}) -> (Tensor, Tensor)",
    conv,
    conv_outputs,
    (keep_conv, gradients_of_conv),
)
define(
    f"causal_conv1d_backward(Tensor? grad, Tensor? grad_back, {CONV})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    conv_backward,
    conv_gradients,
    NOT_TWICE,
)
define(
    "add_norm(Tensor hidden, Tensor? residual, Tensor weight, Tensor? bias, float eps, bool centred, bool wide_total)"
    " -> (Tensor, Tensor)",
    add_norm,
    norm_outputs,
    (keep_norm, gradients_of_norm),
)
define(
    "add_norm_backward(Tensor grad_out, Tensor? grad_total, Tensor total, Tensor weight, float eps, bool centred)"
    " -> (Tensor, Tensor, Tensor)",
    norm_backward,
    norm_gradients,
    NOT_TWICE,
)
define(
    "causal_conv1d_update(Tensor x, Tensor(a!) conv_state, Tensor weight, Tensor? bias, Tensor? cache_seqlens,"
    " Tensor? conv_state_indices, bool silu) -> Tensor",
    conv_update,
    conv_update_output,
)
define(
    "selective_state_update(Tensor(a!) state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z,"
    " Tensor? dt_bias, bool dt_softplus, Tensor? state_batch_indices, bool log_A) -> Tensor",
    state_update,
    state_update_output,
)
define(
    "mixer_step(Tensor projected, Tensor(a!) conv_state, Tensor(b!) state, Tensor conv_weight, Tensor? conv_bias,"
    " Tensor x_weight, Tensor dt_weight, Tensor? dt_bias, Tensor A_log, Tensor D) -> Tensor",
    mixer_step,
    mixer_step_output,
)
