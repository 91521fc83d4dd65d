"""Run a Mamba on a CPU, by the names of the official package.

    python examples/1_run_a_mamba.py

Ends with two numbers to check: how far a sequence at once and the same sequence step by step lie apart (rounding, about
1e-6), and the backend of the scan.
"""

from __future__ import annotations

import torch

import scanlab
import scanlab.integrations.mamba_ssm as drop_in

drop_in.install()
from mamba_ssm import Mamba  # noqa: E402  # after install(): the package need not be there

torch.manual_seed(0)
layer = Mamba(d_model=128, d_state=16, d_conv=4, expand=2).eval()
sequence = torch.randn(1, 200, 128)

with torch.inference_mode():
    at_once = layer(sequence)

    convolution, state = layer.allocate_inference_cache(batch_size=1, max_seqlen=200)
    steps = []
    for t in range(200):
        step, convolution, state = layer.step(sequence[:, t : t + 1], convolution, state)
        steps.append(step)

difference = (torch.cat(steps, dim=1) - at_once).abs().max() / at_once.abs().max()
print(scanlab.explain())
print(f"At once and step by step differ by {difference:.1e} of the largest value.")
assert difference < 1e-5
