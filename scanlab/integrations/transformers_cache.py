"""Read and write the states of Mamba-1 mixers in the caches of transformers' versions.

- `MambaCache`: Mamba and FalconMamba, 4.48 to early 5.x. Whether there is a past follows from the positions that are
  passed along, in later versions from a flag.
- Lists: Jamba and Zamba in the same versions have a cache of their own, with a flag.
- `Cache`: every family since, with a layer for each mixer. It takes the whole state of the convolution, in later
  versions the inputs, which it returns behind those of the past.
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
    """Store nothing."""


def _as_is(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Memory:
    """The past of one mixer, and the functions that store the next.

    Attributes:
        conv: (batch, dim, width), the last inputs of the convolution, to be updated in place; None where there is no
            past, or where the cache must see every input.
        scan: (batch, [heads,] dim, state), the state of the scan, to be updated in place; None where there is no past.
        extend: Stores inputs (batch, dim, length) of the convolution and returns them behind those of the past,
            (batch, dim, length or more).
        keep: Stores the last state of the scan.
    """

    conv: Tensor | None = None
    scan: Tensor | None = None
    extend: Callable[[Tensor], Tensor] = _as_is
    keep: Callable[[Tensor], object] = _nothing


def memory_of(mixer: Any, cache: Any, cache_position: Tensor | None) -> Memory:
    """Return the memory of `mixer` in `cache`, which may be None.

    Raises:
        ProblemError: The cache is of no known kind.
    """
    if cache is None:
        return Memory()
    if hasattr(cache, "update_recurrent_state"):
        return _in_layers(cache, mixer.layer_idx, mixer.conv_kernel_size)
    if hasattr(cache, "update_ssm_state"):
        return _in_mamba_cache(cache, mixer.layer_idx, mixer.conv_kernel_size, cache_position)
    if hasattr(cache, "ssm_states"):
        return _in_lists(cache, mixer.layer_idx, mixer.conv_kernel_size)
    raise ProblemError(f"cache_params is a {type(cache).__name__}: must be a cache with states of Mamba layers.")


def _in_layers(cache: Any, index: int, width: int) -> Memory:
    layer = cache.layers[index]
    conv, scan = layer.conv_states, layer.recurrent_states
    keep = functools.partial(cache.update_recurrent_state, layer_idx=index)
    if not isinstance(conv, dict):
        store = functools.partial(cache.update_conv_state, layer_idx=index)
        return _of_whole_states(layer.has_previous_state, conv, scan, width, store, keep)
    extend = functools.partial(cache.update_conv_state, layer_idx=index, conv_kernel_size=width)
    if not layer.has_previous_state[0]:
        return Memory(extend=extend, keep=keep)
    return Memory(None if layer.record_past else conv[0], scan[0], extend, keep)


def _in_mamba_cache(cache: Any, index: int, width: int, cache_position: Tensor | None) -> Memory:
    if hasattr(cache, "has_previous_state"):
        past = cache.has_previous_state
        store = functools.partial(cache.update_conv_state, index, cache_init=True)
    else:  # a prompt comes with as many positions as the convolution is wide, however long it is
        past = cache_position is not None and len(cache_position) != width
        store = functools.partial(cache.update_conv_state, index, cache_position=torch.arange(width))
    keep = functools.partial(cache.update_ssm_state, index)
    return _of_whole_states(past, cache.conv_states[index], cache.ssm_states[index], width, store, keep)


def _in_lists(cache: Any, index: int, width: int) -> Memory:
    convs, scans = cache.conv_states, cache.ssm_states
    store, keep = (functools.partial(states.__setitem__, index) for states in (convs, scans))
    return _of_whole_states(cache.has_previous_state, convs[index], scans[index], width, store, keep)


def _of_whole_states(
    past: bool,
    conv: Tensor | None,
    scan: Tensor | None,
    width: int,
    store: Callable[[Tensor], object],
    keep: Callable[[Tensor], object],
) -> Memory:
    """Return the memory of a cache that is given whole states of the convolution by `store`."""
    if not past:
        conv = scan = None
    return Memory(conv, scan, functools.partial(_extend, conv, width, store), keep)


def _extend(past: Tensor | None, width: int, store: Callable[[Tensor], object], x: Tensor) -> Tensor:
    """Return x behind its past, and store the last `width` inputs, with zeros where there were not as many."""
    if past is not None and x.shape[-1] > 1:
        raise ProblemError(
            f"{x.shape[-1]} tokens after cached ones: this version of transformers continues a cache by one token at a"
            " time. Pass one, or install transformers>=5.18."
        )
    seen = x if past is None else torch.cat((past, x), dim=-1)
    store(F.pad(seen, (width - seen.shape[-1], 0)))
    return seen
