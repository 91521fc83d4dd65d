"""Serve the compiled and Python modules that VMamba and the models built on it import.

`scanlab.integrations.mamba_ssm.install` registers them under their official names.

Source: MzeroMiko/VMamba@f479b4a, kernels/selective_scan.
"""

from scanlab.integrations.vmamba import selective_scan_cuda_core
from scanlab.integrations.vmamba.selective_scan import selective_scan_fn, selective_scan_ref

__all__ = ["selective_scan_cuda_core", "selective_scan_fn", "selective_scan_ref"]
