"""Gradients of patched Mamba-2 mixers in bfloat16 and under autocast, against the mixer in float64 and unpatched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.transformers_families import FAMILIES, small
from scanlab.contract.cpu import torch_threads
from scanlab.integrations.transformers import patch

pytest.importorskip("transformers", minversion="5.16")

CLASSES = ("Mamba2", "Bamba", "FalconH1", "GraniteMoeHybrid", "NemotronH", "Zamba2")
WITH_NORM = {"mamba_rms_norm": True, "mamba_n_groups": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "FalconH1 with gate before norm": WITH_NORM | {"mamba_norm_before_gate": False},
    "FalconH1 with gate after norm": WITH_NORM | {"mamba_norm_before_gate": True},
    "Mamba2 with limited steps": {},
}
DRAWS = 4


def mixer_of(family: str) -> Any:
    """A mixer of random weights."""
    return next(each for each in small(family).modules() if hasattr(each, "A_log"))


def gradients(mixer: Any, hidden: Tensor, grad_out: Tensor, autocast: bool) -> dict[str, Tensor]:
    """The output of a mixer, and the gradients of its input and of its parameters."""
    hidden = hidden.detach().requires_grad_()
    with torch.autocast("cpu", enabled=autocast):
        out = mixer(hidden)
    out = out[0] if isinstance(out, tuple) else out
    names = ["hidden", *dict(mixer.named_parameters())]
    found = torch.autograd.grad((out.to(grad_out.dtype) * grad_out).sum(), [hidden, *mixer.parameters()])
    return {"out": out} | dict(zip(names, found, strict=True))


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "autocast"])
@pytest.mark.parametrize("family", [*CLASSES, *VARIANTS])
def test_gradients_are_as_near_to_float64_as_unpatched(
    family: str, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean over some draws: a gradient of few numbers is near to float64 by chance in one of them."""
    if family in VARIANTS and family not in FAMILIES:
        monkeypatch.setitem(FAMILIES, family, FAMILIES[family.split()[0]] | VARIANTS[family])
    unpatched = mixer_of(family) if autocast else mixer_of(family).bfloat16()
    wide, patched = copy.deepcopy(unpatched).double(), copy.deepcopy(unpatched)
    patch(patched)
    errors: dict[str, list[tuple[float, float]]] = {}
    with torch_threads(1):
        for hidden, grad_out in torch.randn(DRAWS, 2, 2, 37, 32):
            hidden = hidden.to(unpatched.in_proj.weight.dtype)
            exact = gradients(wide, hidden.double(), grad_out.double(), autocast=False)
            want, got = (gradients(each, hidden, grad_out, autocast) for each in (unpatched, patched))
            for name, truth in exact.items():
                assert got[name].dtype == want[name].dtype, name
                errors.setdefault(name, []).append((error(got[name], truth), error(want[name], truth)))
    for name, pairs in errors.items():
        patched_error, unpatched_error = (sum(each) / DRAWS for each in zip(*pairs, strict=True))
        assert patched_error < 1.25 * unpatched_error + 0.002, (name, patched_error, unpatched_error)
