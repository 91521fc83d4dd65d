"""The neighbours of the scan in a Mamba mixer: short convolution, residual add with norm, one decoding step.

Each op is a file with a plain PyTorch reference, differentiable where the op is, a native C++ version and one in
Triton that give the same values. The public function picks: see `serving`.
"""

from scanlab.mixer.add_norm import add_norm, add_norm_reference
from scanlab.mixer.before_scan import Direction, Projections, Selected, before_scan
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
from scanlab.mixer.packed_linear import Packed, has_few_rows, packed_linear
from scanlab.mixer.selective_state_update import selective_state_update, selective_state_update_reference
from scanlab.mixer.serving import explain, implementation, in_torch

__all__ = [
    "Derived",
    "Direction",
    "Packed",
    "Projections",
    "Selected",
    "add_norm",
    "add_norm_reference",
    "before_scan",
    "causal_conv1d",
    "causal_conv1d_bidirectional",
    "causal_conv1d_reference",
    "causal_conv1d_update",
    "causal_conv1d_update_reference",
    "explain",
    "final_states",
    "has_few_rows",
    "implementation",
    "in_torch",
    "mixer_step",
    "mixer_step_reference",
    "packed_linear",
    "selective_state_update",
    "selective_state_update_reference",
]
