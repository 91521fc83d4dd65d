"""The blocks of a model in one native op, where calling them one by one would compute nothing else."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from scanlab.models.block import Block
from scanlab.models.composed_mixer import has_plain_layers
from scanlab.models.mamba_block import Mixer
from scanlab.models.plain_layers import is_called_plainly
from scanlab.runtime.dispatch import Scan, input_kind
from scanlab_kernels.mamba_blocks.native import BoundBlock, NormParts, run_blocks


def run(blocks: Iterable[nn.Module], hidden: Tensor, scan: Scan) -> tuple[Tensor, Tensor] | None:
    """Return hidden and residual (batch, length, model) after all blocks, the bits that calling them would give.

    None where they have to be called: unless native ops serve every one of them, as their first call decides, in
    inference; and where a hook, a profiler or a mode of torch looks at what they do.
    """
    kind = None if _is_watched() else input_kind(hidden, scan)
    if kind is None:
        return None
    bound: list[BoundBlock] = []
    for block in blocks:
        found = _bound(block, hidden, kind)
        if found is None:
            return None
        bound.append(found)
    return run_blocks(bound, hidden) if bound else None


def _is_watched() -> bool:
    """Return whether a mode or a profiler of torch looks at the ops that run."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._autograd._profiler_enabled()


def _bound(block: nn.Module, hidden: Tensor, kind: object) -> BoundBlock | None:
    """Return the block as the op runs it on inputs of this kind, or None."""
    if not is_called_plainly(block, (Block,)):
        return None
    assert isinstance(block, Block)
    mixer = block.mixer
    if not block.is_fused or not is_called_plainly(mixer, (Mixer,)) or not has_plain_layers(mixer):
        return None
    norm = NormParts(*block.norm.parts(), block.residual_in_fp32)
    return mixer.bound(hidden, kind, norm)
