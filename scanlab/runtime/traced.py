"""The choice of implementation as a constant of compiled code; imported only while torch compiles."""

from __future__ import annotations

import torch

from scanlab.runtime import serving as chosen

serving = torch.compiler.assume_constant_result(chosen.serving)
