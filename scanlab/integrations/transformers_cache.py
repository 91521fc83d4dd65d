"""What a mixer of transformers remembers between calls, whichever cache its version keeps it in.

    MambaCache      Mamba and FalconMamba, first with a past that only the positions passed along tell of,
                    from 5.3 on with a flag
    lists           Jamba and Zamba as long as there was a MambaCache: a cache of their own, with a flag
    Cache           all of them since: a layer for each mixer, first with a state of the convolution that is
                    handed over whole, by 5.18 with inputs that are handed over and come back behind their past
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.errors import ProblemError


def _nothing(_: Tensor) -> None:
    """Forget."""


def _as_is(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Memory:
    """The past of one mixer, and how to keep it.

    conv    (batch, dim, width), the last inputs of the convolution, to be updated in place; None where there
            is no past, or where the cache wants to see every input
    scan    (batch, [heads,] dim, state), the state of the scan, to be updated in place; None where there is no past
    extend  inputs (batch, dim, length) -> what the convolution must see, (batch, dim, length or more); remembers
    keep    remembers the last state of the scan
    """

    conv: Tensor | None = None
    scan: Tensor | None = None
    extend: Callable[[Tensor], Tensor] = _as_is
    keep: Callable[[Tensor], object] = _nothing


def memory_of(mixer: Any, cache: Any, cache_position: Tensor | None) -> Memory:
    """The memory of `mixer` in `cache`; raises ProblemError where it is a cache of no known kind."""
    if cache is None:
        return Memory()
    index, width = mixer.layer_idx, mixer.conv_kernel_size
    if hasattr(cache, "update_recurrent_state"):
        layer = cache.layers[index]
        conv, scan = layer.conv_states, layer.recurrent_states
        keep = functools.partial(cache.update_recurrent_state, layer_idx=index)
        if isinstance(conv, dict):
            extend = functools.partial(cache.update_conv_state, layer_idx=index, conv_kernel_size=width)
            if not layer.has_previous_state[0]:
                return Memory(extend=extend, keep=keep)
            return Memory(None if layer.record_past else conv[0], scan[0], extend, keep)
        past = layer.has_previous_state
        store = functools.partial(cache.update_conv_state, layer_idx=index)
    elif hasattr(cache, "ssm_states"):
        conv, scan = cache.conv_states[index], cache.ssm_states[index]
        if not hasattr(cache, "update_ssm_state"):
            past = cache.has_previous_state
            store = functools.partial(cache.conv_states.__setitem__, index)
            keep = functools.partial(cache.ssm_states.__setitem__, index)
        else:
            keep = functools.partial(cache.update_ssm_state, index)
            if hasattr(cache, "has_previous_state"):
                past = cache.has_previous_state
                store = functools.partial(cache.update_conv_state, index, cache_init=True)
            else:
                past = cache_position is not None and len(cache_position) != width
                store = functools.partial(cache.update_conv_state, index, cache_position=torch.arange(width))
    else:
        raise ProblemError(f"cache_params is a {type(cache).__name__}: must be a cache with states of Mamba layers.")
    extend = functools.partial(_extend, conv if past else None, width, store)
    return Memory(conv, scan, extend, keep) if past else Memory(extend=extend, keep=keep)


def _extend(past: Tensor | None, width: int, store: Callable[[Tensor], object], x: Tensor) -> Tensor:
    """x behind its past; `store` gets the last `width` inputs, zeros where there were not as many."""
    if past is not None and x.shape[-1] > 1:
        raise ProblemError(
            f"{x.shape[-1]} tokens after cached ones: this version of transformers continues a cache by one token at a"
            " time. Pass one, or install transformers>=5.20."
        )
    seen = x if past is None else torch.cat((past, x), dim=-1)
    store(F.pad(seen, (width - seen.shape[-1], 0)))
    return seen
