"""All torch ops that run in Triton for the parts of a Mamba block other than the scan.

Importing this module imports Triton and registers them in `torch.ops.scanlab_mixer_triton`, under the names and with
the arguments that the native ops have in `torch.ops.scanlab_mixer`. In Triton's interpreter they take CPU tensors.
"""

import scanlab_kernels.add_norm.triton
import scanlab_kernels.causal_conv1d.triton.ops
import scanlab_kernels.state_update.triton  # noqa: F401 - defines the ops
