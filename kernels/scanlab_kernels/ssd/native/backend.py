"""The C++ kernel: products of small matrices, the heads of a task chunk by chunk, their states in the cache.

One build holds the kernel for every instruction set of the processor family and picks at run time. The environment
variable SCANLAB_ISA (plain, avx2, avx512, neon) forces one; see `cpu/isa.py`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.contract.backend import Backend, OpCapabilities
from scanlab.contract.cpu import pinned, threads_tunable
from scanlab.contract.space import Config, Space, Tunable
from scanlab_kernels import autograd
from scanlab_kernels.build import PACKAGE, THREADING, WARNINGS, Extension, Unit, headers
from scanlab_kernels.cpu.isa import INSTRUCTION_SETS, chosen_isa, isa_index
from scanlab_kernels.ssd.problem import SsdFn, SsdInputs, SsdOutput, SsdProblem

FOLDER = Path(__file__).parent
# The gradients of `SsdInputs`, which the op returns in this order.
DIFFERENTIATED = ("x", "dt", "A", "B", "C", "D", "dt_bias", "initial_state")

extension = Extension(
    name="ssd",
    units=(
        *(Unit(FOLDER / "kernels.cpp", isa.flags) for isa in reversed(INSTRUCTION_SETS)),
        Unit(FOLDER / "native.cpp", ("-O1",)),
    ),
    flags=("-O3", *WARNINGS, "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", *THREADING),
    link_flags=THREADING,
    stable_abi=True,
)


@functools.cache
def load() -> None:
    """Load the compiled ops and register their shapes, for torch's tracing."""
    extension.load()
    torch.library.register_fake("scanlab_ssd::forward", _forward_shapes)
    torch.library.register_fake("scanlab_ssd::backward", _backward_shapes)


def _forward_shapes(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, heads, head_dim = x.shape
    chunk, keeps_states = min(others[-4], length), others[-1]
    kept = (batch, (length + chunk - 1) // chunk, heads, B.shape[-1], head_dim) if keeps_states else (0,)
    return x.new_empty(x.shape), A.new_empty(batch, heads, head_dim, B.shape[-1]), A.new_empty(kept)


def _backward_shapes(
    grad_out: Tensor, grad_final: Tensor | None, chunk_states: Tensor, x: Tensor, dt: Tensor, A: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    batch, length, heads, head_dim = x.shape
    B, task_heads = others[0], min(others[-2], heads)
    groups, state = B.shape[2:]
    parts = ((heads // groups + task_heads - 1) // task_heads, batch, length, groups, state)
    sizes = ((batch, heads), parts, parts, (batch, heads, head_dim), (batch, heads), (batch, heads, head_dim, state))
    return x.new_empty(x.shape), dt.new_empty(dt.shape), *(A.new_empty(each) for each in sizes)


class _Differentiable(torch.autograd.Function):
    """The op without a gate, with its gradients."""

    @staticmethod
    def forward(ctx: Any, settings: tuple[Any, ...], *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        out, final_state, chunk_states = torch.ops.scanlab_ssd.forward.default(*tensors, *settings, True)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(chunk_states, *tensors)
        return out, final_state

    @staticmethod
    def backward(ctx: Any, grad_out: Any, grad_final: Any) -> tuple[Tensor | None, ...]:
        def gradients(grad_out: Any, grad_final: Any, chunk_states: Tensor, *tensors: Any) -> tuple[Any, ...]:
            inputs = SsdInputs(*tensors)
            grad_out = torch.zeros_like(inputs.x) if grad_out is None else grad_out
            given = inputs._asdict()
            del given["z"]
            found = torch.ops.scanlab_ssd.backward.default(
                grad_out, grad_final, chunk_states, *given.values(), *ctx.settings
            )
            by_name = dict(zip(DIFFERENTIATED, found, strict=True))
            for name in ("A", "B", "C", "D", "dt_bias"):  # of each sequence or task
                by_name[name] = by_name[name].sum(0)
            if inputs.D is not None and inputs.D.dim() == 1:
                by_name["D"] = by_name["D"].sum(1)
            return tuple(
                None if each is None or name not in by_name else by_name[name].to(each.dtype)
                for name, each in inputs._asdict().items()
            )

        return None, *autograd.once(gradients, grad_out, grad_final, *ctx.saved_tensors)


def make(problem: SsdProblem, config: Config) -> SsdFn:
    """Return the compiled op; compile it on the first use on a machine."""
    load()
    settings = (
        problem.dt_softplus,
        *problem.limits,
        config["chunk"],
        config["task_heads"],
        isa_index(chosen_isa()),
    )

    def ssd(inputs: SsdInputs) -> SsdOutput:
        if not (torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in inputs)):
            out, final_state, _ = torch.ops.scanlab_ssd.forward.default(*inputs, *settings, False)
            return SsdOutput(out, final_state)
        if inputs.z is None:
            return SsdOutput(*_Differentiable.apply(settings, *inputs))  # type: ignore[no-untyped-call]
        # The op has no gradient of the gate, and nothing may be rounded before it.
        x, B, C, gate = inputs.x.float(), inputs.B.float(), inputs.C.float(), F.silu(inputs.z.float())
        wide = inputs._replace(x=x, B=B, C=C, z=None)
        y, final_state = _Differentiable.apply(settings, *wide)  # type: ignore[no-untyped-call]
        return SsdOutput((y * gate).to(inputs.x.dtype), final_state)

    return pinned(ssd, int(config["threads"]))


backend = Backend(
    name="ssd_native",
    summary="C++: small products in registers, chunk by chunk, the states of some heads in the cache",
    rank=4,
    sources=(
        Path(__file__),
        Path(autograd.__file__),
        *headers(FOLDER),
        *headers(PACKAGE / "cpu"),
        *dict.fromkeys(unit.source for unit in extension.units),
    ),
    space=Space(
        (
            Tunable("chunk", (16, 32, 48, 64, 96, 128, 192, 256), default=64, summary="time steps of a chunk"),
            Tunable("task_heads", (1, 2, 4, 8, 16), default=4, summary="heads that one thread takes at a time"),
            threads_tunable(),
        )
    ),
    capabilities=OpCapabilities(dtypes=("float32", "bfloat16", "float16"), gradients=True),
    make=make,
    unavailable=extension.unavailable,
    op="ssd",
)
