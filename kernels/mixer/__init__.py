"""The neighbours of the scan in a Mamba mixer: short convolution, residual add with norm, one decoding step.

Each op is a file with a plain PyTorch reference, differentiable where the op is, and a native C++ version that
gives the same values. The public function picks: see `native`.
"""

from scanlab.mixer.add_norm import add_norm, add_norm_reference
from scanlab.mixer.causal_conv1d import (
    causal_conv1d,
    causal_conv1d_bidirectional,
    causal_conv1d_reference,
    causal_conv1d_update,
    causal_conv1d_update_reference,
    final_states,
)
from scanlab.mixer.derived import Derived
from scanlab.mixer.mixer_step import mixer_step, mixer_step_reference
from scanlab.mixer.native import implementation, in_torch
from scanlab.mixer.packed_linear import packed_linear
from scanlab.mixer.selective_state_update import selective_state_update, selective_state_update_reference

__all__ = [
    "Derived",
    "add_norm",
    "add_norm_reference",
    "causal_conv1d",
    "causal_conv1d_bidirectional",
    "causal_conv1d_reference",
    "causal_conv1d_update",
    "causal_conv1d_update_reference",
    "final_states",
    "implementation",
    "in_torch",
    "mixer_step",
    "mixer_step_reference",
    "packed_linear",
    "selective_state_update",
    "selective_state_update_reference",
]
