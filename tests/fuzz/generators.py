"""Every public op and the generator of its calls."""

from __future__ import annotations

import importlib.util
import zlib
from typing import Protocol

from torch import Tensor

from fuzz import (
    convolutions,
    drop_ins,
    extensions,
    files,
    fronts,
    mamba2,
    norms,
    other_scans,
    raw_ops,
    scans,
    steps,
    surroundings,
    transformers_models,
)
from fuzz.case import Arguments, Case, Kind, Results
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
    "bimamba_inner": drop_ins.bimamba_inner,
    "vmamba": drop_ins.vmamba,
    "mamba_chunk_scan": mamba2.chunk_scan,
    "mamba2_layer": mamba2.layer,
    "chunk_steps": mamba2.chunk_steps,
    "ssd_update": mamba2.step,
    "ssd_minimal": mamba2.minimal,
    "selective_scan_cuda": extensions.selective_scan_cuda,
    "causal_conv1d_cuda": extensions.conv_extension,
    "varlen_states": extensions.varlen_states,
    "raw_op": raw_ops.raw_op,
    "file": files.file,
    "surroundings": surroundings.surroundings,
}
if importlib.util.find_spec("transformers") is not None:
    GENERATORS["transformers"] = transformers_models.transformers_model


def draw_case(name: str, seed: int) -> Case:
    """Return the call that a seed stands for: half of them valid, a quarter edge cases, a quarter hostile."""
    draw = Draw(zlib.crc32(f"{name} {seed}".encode()))
    kind: Kind = draw.pick(("valid", "valid", "edge", "hostile"))
    case = GENERATORS[name](draw, edge=kind == "edge")
    case.kind = kind
    if kind != "hostile":
        return case
    right = dict(case.arguments) if draw.chance(0.5) else None
    corrupt(draw, case)
    return case if right is None else after_a_call(case, right)


def after_a_call(case: Case, right: Arguments) -> Case:
    """Return the case, called after another one in whose light what is kept between calls may look right."""
    case.note += " after a right call"
    copies = {name: value.clone() if isinstance(value, Tensor) else value for name, value in right.items()}
    call = case.call

    def both(given: Arguments) -> Results:
        call(dict(copies))
        return call(given)

    case.call = both
    return case
