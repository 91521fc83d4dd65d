"""Every public op and the generator of its calls."""

from __future__ import annotations

import zlib
from typing import Protocol

from fuzz import convolutions, drop_ins, fronts, norms, other_scans, scans, steps
from fuzz.case import Case, Kind
from fuzz.draws import Draw
from fuzz.hostile import corrupt


class Generator(Protocol):
    """Draws a call of one op; with `edge` one of empty tensors, special values or overlapping memory."""

    def __call__(self, draw: Draw, *, edge: bool) -> Case: ...


GENERATORS: dict[str, Generator] = {
    "selective_scan": scans.selective_scan,
    "directed_scan": scans.directed_scan,
    "ssd": other_scans.ssd,
    "cross_scan": other_scans.cross_scan,
    "convolution": convolutions.convolution,
    "bidirectional_convolution": convolutions.bidirectional_convolution,
    "convolution_function": convolutions.function,
    "convolution_update": convolutions.update,
    "add_norm": norms.add_norm,
    "layer_norm": norms.layer_norm,
    "gated_norm": norms.gated_norm,
    "norm_linear": norms.norm_linear,
    "state_update": steps.state_update,
    "mixer_step": steps.mixer_step,
    "linear": fronts.product,
    "mamba_front": fronts.front,
    "mamba_inner": drop_ins.mamba_inner,
    "vmamba": drop_ins.vmamba,
}


def draw_case(name: str, seed: int) -> Case:
    """Return the call that a seed stands for: half of them valid, a quarter edge cases, a quarter hostile."""
    draw = Draw(zlib.crc32(f"{name} {seed}".encode()))
    kind: Kind = draw.pick(("valid", "valid", "edge", "hostile"))
    case = GENERATORS[name](draw, edge=kind == "edge")
    case.kind = kind
    return corrupt(draw, case) if kind == "hostile" else case
