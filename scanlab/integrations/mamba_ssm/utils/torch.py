"""Decorators of `mamba_ssm.utils.torch` for autograd functions under autocast, here that of the CPU.

Source: state-spaces/mamba@e9594ce, mamba_ssm/utils/torch.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def custom_amp_decorator(dec: Callable[..., Any], cuda_amp_deprecated: bool) -> Callable[..., Any]:
    """Return a decorator of torch.amp for the CPU; `cuda_amp_deprecated` says that `dec` takes a device type."""
    return functools.partial(dec, device_type="cpu") if cuda_amp_deprecated else dec


custom_fwd = custom_amp_decorator(torch.amp.custom_fwd, True)
custom_bwd = custom_amp_decorator(torch.amp.custom_bwd, True)
