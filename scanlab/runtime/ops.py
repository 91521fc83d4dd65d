"""The neighbours of the scan in a Mamba mixer: short convolution, residual add with norm, one decoding step.

Each op is a file with a plain PyTorch reference, differentiable where the op is, a native C++ version and one in
Triton that give the same values. The public function picks: see `serving`.
"""

from scanlab.runtime.serving import explain, implementation, in_torch
from scanlab_kernels.add_norm.op import add_norm, add_norm_reference
from scanlab_kernels.causal_conv1d.op import (
    causal_conv1d,
    causal_conv1d_bidirectional,
    causal_conv1d_reference,
    causal_conv1d_update,
    causal_conv1d_update_reference,
    final_states,
)
from scanlab_kernels.linear.packed_linear import PrepackedWeight, has_few_rows, packed_linear
from scanlab_kernels.mamba_front.op import DirectionWeights, Projections, ScanArguments, before_scan
from scanlab_kernels.state_update.mixer_step import mixer_step, mixer_step_reference
from scanlab_kernels.state_update.op import selective_state_update, selective_state_update_reference
from scanlab_kernels.weight_cache import WeightCache

__all__ = [
    "DirectionWeights",
    "PrepackedWeight",
    "Projections",
    "ScanArguments",
    "WeightCache",
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
