"""States of a mixer in the inference cache of a generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from scanlab.errors import ProblemError
from scanlab_kernels.checks import expect_states

State = tuple[Tensor, Tensor]


class CachedStates:
    """Mixin of a mixer that keeps its states, by the index of its layer, in an inference cache."""

    layer_idx: int | None
    allocate_inference_cache: Callable[..., State]
    _state_shapes: Callable[[int], tuple[tuple[int, ...], tuple[int, ...]]]

    def _get_states_from_cache(self, inference_params: Any, batch_size: int, initialize_states: bool = False) -> State:
        """Return this layer's states in inference_params.key_value_memory_dict, put there where they are missing."""
        if self.layer_idx is None:
            raise ProblemError("layer_idx is None: an inference cache is kept by layer; give each Mamba its layer_idx.")
        known: dict[int, State] = inference_params.key_value_memory_dict
        if self.layer_idx not in known:
            known[self.layer_idx] = self.allocate_inference_cache(batch_size, 0)
        elif initialize_states:
            for state in known[self.layer_idx]:
                state.zero_()
        return known[self.layer_idx]

    def _expect_states(self, conv_state: Tensor, ssm_state: Tensor, batch_size: int, like: Tensor) -> None:
        """Raise ProblemError unless both states are those of a batch of this size, and can be updated."""
        expect_states(conv_state, ssm_state, *self._state_shapes(batch_size), like)
