"""The ops in PyTorch, under the names and with the arguments of `torch.ops.scanlab_mixer`: the references."""

from scanlab_kernels.add_norm.torch import add_norm
from scanlab_kernels.causal_conv1d.torch import causal_conv1d, causal_conv1d_update
from scanlab_kernels.state_update.torch import mixer_step, selective_state_update

__all__ = ["add_norm", "causal_conv1d", "causal_conv1d_update", "mixer_step", "selective_state_update"]
