"""Decorators of `mamba_ssm.utils.torch` for autograd functions under autocast, here that of the CPU.

Source: state-spaces/mamba@e9594ce, mamba_ssm/utils/torch.py.
"""

from __future__ import annotations

import functools

import torch

custom_fwd = functools.partial(torch.amp.custom_fwd, device_type="cpu")
custom_bwd = functools.partial(torch.amp.custom_bwd, device_type="cpu")
