"""Replace upstream's kernels by its PyTorch references: the fallback of a client's code without CUDA.

`selective_scan_ref` and `mamba_inner_ref` of the mamba_ssm that is imported stand for its CUDA functions, the reference
norms for its Triton ones, and torch's convolution for causal_conv1d. The extension modules of VMamba compute with
`selective_scan_ref` of state-spaces/mamba, and its Triton kernels, which only reorder, are scanlab's here too.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.integrations import csm_triton_hook
from scanlab_kernels.after_import import AfterImport

OLDER_NAMES = ("GreedySearchDecoderOnlyOutput", "SampleDecoderOnlyOutput")
VMAMBA = ("core", "oflex", "ndstate", "nrow")


def install(official: Path) -> None:
    """Install the references; `official` is a checkout of state-spaces/mamba."""
    sys.path.append(str(official))  # behind the client's fork
    _add("selective_scan_cuda", fwd=_forward_of_mamba, bwd=_backward_of_mamba)
    _add("causal_conv1d_cuda")
    _add("causal_conv1d", causal_conv1d_fn=_causal_conv1d, causal_conv1d_update=None)
    _add("causal_conv1d.causal_conv1d_interface", causal_conv1d_fn=_causal_conv1d)
    compiled = (f"causal_conv1d_{name}_function" for name in ("fwd", "bwd", "update"))
    _add("causal_conv1d.cpp_functions", **dict.fromkeys(compiled))
    for name in VMAMBA:
        _add(f"selective_scan_cuda_{name}", fwd=_forward, bwd=_backward)
    generation = importlib.import_module("transformers.generation")
    for name in OLDER_NAMES:  # forks import them, and newer versions of transformers lack them
        if not hasattr(generation, name):
            setattr(generation, name, generation.GenerateDecoderOnlyOutput)
    for pattern, adapt in (
        (r"(.*\.)?ops\.selective_scan_interface", _refer_scans),
        (r"(.*\.)?ops\.triton\.layer_?norm", _refer_norms),
        (r"(.*\.)?ops\.triton\.ssd_combined", _refer_ssd),
    ):
        finder: importlib.abc.MetaPathFinder = AfterImport(pattern, adapt)
        sys.meta_path.insert(0, finder)
    sys.meta_path.insert(0, csm_triton_hook.finder)
    sys.meta_path.append(OlderNorms())  # where nobody has them


def _add(name: str, **attributes: Any) -> None:
    module = sys.modules[name] = ModuleType(name)
    vars(module).update(attributes, __path__=[])


def _causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *others: Any, activation: str | None = None, **named: Any
) -> Tensor:
    """Return the short convolution by torch's; other arguments are not used by the clients."""
    activation = activation or next((each for each in others if isinstance(each, str)), None)
    out = F.conv1d(x, weight[:, None], bias, padding=weight.shape[1] - 1, groups=len(weight))[..., : x.shape[-1]]
    return out if activation is None else F.silu(out)


def _refer_scans(module: ModuleType) -> None:
    names = vars(module)
    scan, inner = names["selective_scan_ref"], names["mamba_inner_ref"]
    names["selective_scan_fn"] = scan
    names["mamba_inner_fn"] = _called_by_name(inner)
    names["mamba_inner_fn_no_out_proj"] = _without_projection(inner)
    if "bimamba_inner_ref" in names:
        names["bimamba_inner_fn"] = names["bimamba_inner_ref"]


def _called_by_name(reference: Callable[..., Any]) -> Callable[..., Any]:
    """Return `reference` without the named arguments that it does not know."""
    known = inspect.signature(reference).parameters

    def function(*arguments: Any, **named: Any) -> Any:
        return reference(*arguments, **{name: each for name, each in named.items() if name in known})

    return function


def _without_projection(inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return `inner` before its output projection: (batch, dim, length)."""

    def function(
        xz: Tensor, conv: Tensor, bias: Tensor, x_proj: Tensor, dt_proj: Tensor, *rest: Any, **named: Any
    ) -> Tensor:
        identity = torch.eye(conv.shape[0], dtype=xz.dtype)
        return inner(xz, conv, bias, x_proj, dt_proj, identity, None, *rest, **named).mT

    return function


def _refer_norms(module: ModuleType) -> None:
    names = vars(module)
    layer, rms = names.get("layer_norm_ref"), names.get("rms_norm_ref")
    if layer is not None and rms is not None:
        names["layer_norm_fn"], names["rms_norm_fn"] = _norm(layer, rms), _norm(rms, rms)


def _norm(reference: Callable[..., Any], of_rms: Callable[..., Any]) -> Callable[..., Any]:
    """Return a norm by `reference`, or by `of_rms` where the call says is_rms_norm, as it does in mamba_ssm 2.x."""

    def function(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
        eps: float = 1e-6,
        is_rms_norm: bool = False,
        **named: Any,
    ) -> Any:
        norm = of_rms if is_rms_norm else reference
        return norm(x, weight, bias, residual=residual, eps=eps, prenorm=prenorm, upcast=residual_in_fp32)

    return function


class OlderNorms(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finder of the norms of mamba_ssm by the name of 1.x, for code of 1.x where 2.x is found."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for the older name only."""
        if fullname != "mamba_ssm.ops.triton.layernorm":
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module by its newer name."""
        return importlib.import_module("mamba_ssm.ops.triton.layer_norm")

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: it has run."""


def _refer_ssd(module: ModuleType) -> None:
    reference = _called_by_name(vars(module)["ssd_selective_scan"])

    def function(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int, **named: Any) -> Any:
        return reference(x, dt, A, B, C, **named)

    vars(module)["mamba_chunk_scan_combined"] = function


def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    nrows: int = 1,
    out_float: bool = False,
) -> list[Tensor]:
    """Return the output of a scan of VMamba's extensions, and the opaque state that its backward takes."""
    with torch.no_grad():
        return [_scan(u, delta, A, B, C, D, delta_bias, softplus), torch.empty(0)]


def _forward_of_mamba(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: None,
    delta_bias: Tensor | None,
    softplus: bool,
) -> list[Tensor]:
    """Return `_forward`, with the arguments of mamba_ssm's extension."""
    return _forward(u, delta, A, B, C, D, delta_bias, softplus)


def _scan(*arguments: Any) -> Tensor:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_ref

    u, delta, A, B, C, D, delta_bias, softplus = arguments
    if A.dim() == 1:  # one state without its axis
        A, B, C = A[:, None], B.unsqueeze(2), C.unsqueeze(2)
    scanned: Tensor = selective_scan_ref(u, delta, A, B, C, D, None, delta_bias, softplus)
    return scanned


def _backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor,
    softplus: bool,
    nrows: int = 1,
) -> list[Tensor | None]:
    """Return the gradients of `_forward`."""
    leaves = [None if each is None else each.detach().requires_grad_() for each in (u, delta, A, B, C, D, delta_bias)]
    with torch.enable_grad():
        out = _scan(*leaves, softplus)
    given = [each for each in leaves if each is not None]
    found = iter(torch.autograd.grad(out, given, dout.to(out.dtype)))
    return [None if each is None else next(found) for each in leaves]


def _backward_of_mamba(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor,
    out: Tensor | None,
    dz: None,
    softplus: bool,
    recompute: bool,
) -> list[Tensor | None]:
    """Return the gradients of `_forward_of_mamba`."""
    return _backward(u, delta, A, B, C, D, delta_bias, dout, x, softplus)
