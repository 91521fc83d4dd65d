"""Hugging Face transformers' Mamba-1 models on scanlab's kernels: `patch()`, and nothing else changes.

Mamba, FalconMamba, Jamba and Zamba share one mixer: a gated projection, a short convolution, a selection of
step sizes, B and C, and the selective scan. Their PyTorch code walks through time in Python. Patched, a
sequence goes through the scan that `scanlab.runtime.dispatch` decides on, and a single token through the
mixer's step in C++; weights, caches, masks and gradients stay theirs.

Source: huggingface/transformers, models/{mamba, falcon_mamba, jamba, zamba}, the forward of the mixers, 4.48 to 5.23.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanlab import settings
from scanlab.contract.problem import ScanInputs
from scanlab.errors import ProblemError, UnavailableError
from scanlab.integrations.transformers_cache import Memory, memory_of
from scanlab.models.mamba_weights import as_scanned, rates
from scanlab.models.plain_layers import is_plain_layer
from scanlab.runtime.dispatch import promoted, scan
from scanlab.runtime.ops import (
    PrepackedWeight,
    WeightCache,
    causal_conv1d,
    causal_conv1d_update,
    has_few_rows,
    linear,
    mixer_step,
    selective_state_update,
)
from scanlab.runtime.traced import is_traced

log = logging.getLogger("scanlab")

MIXERS = {
    "mamba": "MambaMixer",
    "falcon_mamba": "FalconMambaMixer",
    "jamba": "JambaMambaMixer",
    "zamba": "ZambaMambaMixer",
}
OLDEST, BEYOND = (4, 48), (6, 0)

Forward = Callable[..., Tensor]


def patch(model: nn.Module | None = None) -> ExitStack:
    """Let every Mamba-1 mixer of transformers, or only those of `model`, compute with scanlab's kernels.

    Prefill, cached decoding and training, under any mask, give what the unpatched model gives, to rounding.
    Only CPU tensors are served: elsewhere, and where a mixer has another activation than SiLU, the unpatched
    code runs; that is said once, and with $SCANLAB_STRICT=1 it is an error. Several tokens at once after
    cached ones restart the scan, as they do in transformers 5; older ones compute something else, and refuse.

    Patching twice is patching once. Returns a context that takes back, where it ends, what this call patched;
    without `with` the patch stays until `unpatch`.
    Raises UnavailableError where transformers is missing or of another version, ProblemError where `model`
    has no Mamba-1 mixer or something else has replaced the forward of one.
    """
    if model is None:
        undo = ExitStack()
        for mixer_class in _mixer_classes():
            if not _is_ours(mixer_class.forward):
                undo.callback(setattr, mixer_class, "forward", mixer_class.forward)
                mixer_class.forward = _forward_instead_of(mixer_class.forward)
        return undo
    with ExitStack() as so_far:
        for mixer in _mixers(model):
            if "forward" not in vars(mixer):
                so_far.callback(_unpatch_mixer, mixer)
                mixer.forward = MethodType(_forward_instead_of(_original(type(mixer).forward)), mixer)
            elif not _is_ours(mixer.forward):
                raise ProblemError(
                    f"{type(mixer).__name__} {mixer.layer_idx} has a forward of its own: something, such as an"
                    " offloading hook, replaced it. Patch before that is done, or patch() every model."
                )
        return so_far.pop_all()


def unpatch(model: nn.Module | None = None) -> None:
    """Take back `patch()`, or `patch(model)`; where nothing was patched, nothing happens."""
    if model is None:
        for mixer_class in _mixer_classes():
            mixer_class.forward = _original(mixer_class.forward)
    else:
        for mixer in _mixers(model):
            _unpatch_mixer(mixer)


def _unpatch_mixer(mixer: nn.Module) -> None:
    if "forward" in vars(mixer) and _is_ours(mixer.forward):
        del mixer.forward


@functools.cache
def _mixer_classes() -> tuple[Any, ...]:
    try:
        version: str = importlib.import_module("transformers").__version__
    except ImportError as error:
        raise UnavailableError("transformers is not installed: pip install 'transformers>=4.48'.") from error
    if not OLDEST <= tuple(int(part) for part in version.split(".")[:2]) < BEYOND:
        raise UnavailableError(
            f"transformers {version} is installed: this scanlab patches 4.48 up to 5.x; install one."
        )
    return tuple(
        getattr(importlib.import_module(f"transformers.models.{family}.modeling_{family}"), name)
        for family, name in MIXERS.items()
    )


def _mixers(model: nn.Module) -> list[Any]:
    found = [module for module in model.modules() if isinstance(module, _mixer_classes())]
    if not found:
        raise ProblemError(
            f"{type(model).__name__} has no Mamba-1 mixer of transformers: patched are {', '.join(MIXERS.values())}."
        )
    return found


def _is_ours(forward: Forward) -> bool:
    return forward.__module__ == __name__


def _original(forward: Forward) -> Forward:
    original: Forward = inspect.unwrap(forward, stop=lambda each: not _is_ours(each))
    return original


def _forward_instead_of(original: Forward) -> Forward:
    """A forward with the parameters of `original`, whose order differs from version to version."""
    _, _, *names = inspect.signature(original).parameters
    # Older versions mask what the convolution sees; newer ones mask what is projected.
    masks_hidden = hasattr(inspect.getmodule(original), "apply_mask_to_padding_states")

    def forward(mixer: Any, hidden_states: Tensor, *arguments: Any, **named: Any) -> Tensor:
        reason = _refusal(mixer, hidden_states)
        if reason is not None:
            _announce(f"{type(mixer).__name__} runs unpatched: {reason}.")
            return original(mixer, hidden_states, *arguments, **named)
        given = dict(zip(names, arguments, strict=False)) | named
        memory = memory_of(mixer, given.get("cache_params"), given.get("cache_position"))
        return _mix(mixer, hidden_states, memory, given.get("attention_mask"), masks_hidden)

    return functools.update_wrapper(forward, original, assigned=(), updated=())


def _refusal(mixer: Any, hidden: Tensor) -> str | None:
    if not hidden.is_cpu:
        return f"its tensors are on {hidden.device}, and this patch serves the CPU"
    if mixer.activation not in ("silu", "swish"):
        return f"its activation is {mixer.activation}, and the kernels have silu"
    return None


@functools.cache
def _announce(message: str) -> None:
    if settings.strict():
        raise UnavailableError(f"{message} ({settings.STRICT.name}=1 makes this an error.)")
    log.warning("scanlab: %s", message)


def _mix(mixer: Any, hidden: Tensor, memory: Memory, mask: Tensor | None, masks_hidden: bool) -> Tensor:
    """Return the mixed hidden (batch, length, dim); everything is kept dim-last, as projections leave it."""
    batch, length, _ = hidden.shape
    mask = None if mask is None else mask[:, -length:, None]
    if masks_hidden:
        hidden = _masked(hidden, mask)
    past = memory.scan if length == 1 else None
    taps, bias = mixer.conv1d.weight[:, 0], mixer.conv1d.bias
    # the ops of a single step record no gradient
    recording = torch.is_grad_enabled() and (
        hidden.requires_grad or any(each.requires_grad for each in mixer.parameters())
    )
    if past is not None and memory.conv is not None and mask is None and not recording and _steps_fused(mixer):
        dt = mixer.dt_proj
        y = mixer_step(
            _product(mixer, "in_proj", hidden)[:, 0],
            memory.conv,
            past,
            taps,
            bias,
            mixer.x_proj.weight,
            dt.weight,
            dt.bias,
            mixer.A_log,
            mixer.D,
        )
        return _product(mixer, "out_proj", y[:, None])
    x, z = _halves(mixer, hidden)
    if not masks_hidden:
        x = _masked(x, mask)
    if past is not None and memory.conv is not None and not recording:
        u = causal_conv1d_update(x.mT.to(memory.conv.dtype), memory.conv, taps, bias, activation="silu").mT
    else:
        u = causal_conv1d(memory.extend(x.mT), taps, bias, activation="silu")[..., -length:].mT
    u = _masked(u, mask)
    delta, B, C, delta_bias = _selection(mixer, u)
    if past is not None and not recording:
        own = (batch, *mixer.D.shape)  # (batch, dim), or with heads (batch, heads, dim)
        x, dt, z = (each.reshape(own) for each in (u, delta, z))
        B, C = B[:, 0], C[:, 0]
        y = selective_state_update(past, x, dt, mixer.A_log, B, C, mixer.D, z, delta_bias, dt_softplus=True, log_A=True)
        y = y.view(batch, 1, -1)
    else:
        A = _decay_rates(mixer, u.dtype)
        inputs = ScanInputs(
            u=u.mT,
            delta=delta.mT,
            A=A.flatten(0, -2),
            B=B.movedim(1, -1),
            C=C.movedim(1, -1),
            D=as_scanned(mixer.D, u.dtype).flatten(),
            z=z.mT,
            delta_bias=None if delta_bias is None else as_scanned(delta_bias, u.dtype).flatten(),
            # a copy: the cache is overwritten in place, and gradients want what was there
            initial_state=None if past is None else as_scanned(past, u.dtype).flatten(1, -2).clone(),
        )
        scanned, last_state = scan(promoted(inputs))
        memory.keep(last_state.view(batch, *A.shape))
        y = scanned.mT.to(u.dtype)
    return _product(mixer, "out_proj", y)


def _steps_fused(mixer: Any) -> bool:
    """Return True where one step is plain products with weights of the states' dtype: Mamba itself, no autocast."""
    if type(mixer).__name__ != MIXERS["mamba"] or torch.is_autocast_enabled("cpu"):
        return False
    return all(map(is_plain_layer, (mixer.in_proj, mixer.x_proj, mixer.dt_proj, mixer.out_proj)))


def _masked(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else (values * mask).to(values.dtype)


# What inference keeps of the weights of each mixer, so that an unpatched mixer is as it was.
_derived: WeakKeyDictionary[nn.Module, defaultdict[str, WeightCache[Any]]] = WeakKeyDictionary()


def _kept(mixer: nn.Module, name: str) -> WeightCache[Any]:
    return _derived.setdefault(mixer, defaultdict(WeightCache[Any]))[name]


def _decay_rates(mixer: Any, dtype: torch.dtype) -> Tensor:
    """Return A (dim, state), or with heads (heads, dim, state), as a scan of `dtype` reads it."""
    if is_traced():
        return rates(mixer.A_log, dtype)
    A: Tensor = _kept(mixer, f"A {dtype}")(lambda: rates(mixer.A_log, dtype), mixer.A_log)
    return A


def _packed(mixer: nn.Module, name: str, weight: Tensor, x: Tensor) -> PrepackedWeight:
    """A weight of `mixer` as a product with x reads it."""
    if is_traced() or has_few_rows(x):
        return PrepackedWeight(weight)
    made: PrepackedWeight = _kept(mixer, name)(lambda: PrepackedWeight(weight), weight)
    return made


def _product(mixer: Any, name: str, x: Tensor, half: slice = slice(None)) -> Tensor:
    """The projection called `name`, or half of what it puts out, with its weight packed where that is possible."""
    projection = getattr(mixer, name)
    if not is_plain_layer(projection):
        whole: Tensor = projection(x)
        return whole[..., half]
    bias = None if projection.bias is None else projection.bias[half]
    return linear(x, _packed(mixer, f"{name} {half.start} {half.stop}", projection.weight[half], x), bias)


def _halves(mixer: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """What is convolved, and the gate; Zamba interleaves them channel by channel."""
    if hasattr(mixer, "n_mamba_heads"):
        x, z = mixer.in_proj(hidden).unflatten(-1, (-1, 2)).unbind(-1)
        return x.contiguous(), z.contiguous()
    if not is_plain_layer(mixer.in_proj):
        x, z = mixer.in_proj(hidden).chunk(2, dim=-1)
        return x, z
    # two products instead of one that is split: both come out dense
    inner = mixer.in_proj.out_features // 2
    return _product(mixer, "in_proj", hidden, slice(inner)), _product(mixer, "in_proj", hidden, slice(inner, None))


def _selection(mixer: Any, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Step sizes (batch, length, dim), B and C (batch, length, [heads,] state), and the bias the steps still lack."""
    sizes = [mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size]
    if hasattr(mixer, "n_mamba_heads"):
        by_head = u.unflatten(-1, (mixer.n_mamba_heads, -1))
        selected = torch.einsum("blhd,hpd->blhp", by_head, mixer.x_proj_weight)
        low_rank, B, C = selected.split(sizes, dim=-1)
        delta = torch.einsum("blhr,hdr->blhd", low_rank, mixer.dt_proj_weight).flatten(-2)
        return delta, B, C, mixer.dt_proj_bias
    selected = _product(mixer, "x_proj", u)
    low_rank, B, C = (norm(each) for norm, each in zip(_norms(mixer), selected.split(sizes, dim=-1), strict=True))
    projection = mixer.dt_proj
    if is_plain_layer(projection):  # the bias goes into the scan, where it is added in float32
        return linear(low_rank, _packed(mixer, "dt_proj", projection.weight, low_rank)), B, C, projection.bias
    return projection(low_rank), B, C, None


def _norms(mixer: Any) -> Iterator[Callable[[Tensor], Tensor]]:
    """What is done to the low-rank steps, B and C."""
    for name in ("dt_layernorm", "b_layernorm", "c_layernorm"):
        if hasattr(mixer, name):
            yield getattr(mixer, name)
        elif hasattr(mixer, "rms_eps"):  # FalconMamba before its norms were modules
            yield functools.partial(_rms, eps=mixer.rms_eps)
        else:
            yield _as_is


def _rms(values: Tensor, eps: float) -> Tensor:
    return F.rms_norm(values.float(), values.shape[-1:], eps=eps).to(values.dtype)


def _as_is(values: Tensor) -> Tensor:
    return values
