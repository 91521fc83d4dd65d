"""Mamba-2's scan as one torch op, for programs of which torch builds a graph; see `traced`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scanlab.errors import UnavailableError
from scanlab.runtime.traced import NAMESPACE, define, exports_to_onnx, laid_out_like
from scanlab_kernels import flop_formulas
from scanlab_kernels.autograd import once
from scanlab_kernels.selective_scan import scan_operator
from scanlab_kernels.ssd.problem import Limits, SsdInputs, SsdOutput
from scanlab_kernels.ssd.scan import from_scan, scan_inputs

TENSORS = len(SsdInputs._fields)
REQUIRED = ("x", "dt", "A", "B", "C")

Serve = Callable[[SsdInputs, bool, Limits], SsdOutput]


def ssd(inputs: SsdInputs, dt_softplus: bool, dt_limit: Limits) -> SsdOutput:
    """Return the scan of these tensors as a node of the graph: the op, or for ONNX torch's scan operator.

    Raises:
        UnavailableError: The graph is for ONNX, and ONNX cannot hold this scan.
    """
    if exports_to_onnx():
        if inputs.seq_idx is not None:
            raise UnavailableError("ONNX holds no scan with seq_idx: export the model with one sequence a row.")
        return from_scan(scan_operator.scan(scan_inputs(inputs, dt_softplus, dt_limit), delta_softplus=False), inputs)
    return SsdOutput(*torch.ops.scanlab_runtime.ssd(*inputs, dt_softplus, *map(float, dt_limit)))


def register(serve: Serve) -> None:
    """Define the op; once in a process.

    Args:
        serve: Computes a scan, differentiably, from inputs in the dtypes of a problem.
    """

    def run(arguments: tuple[Any, ...]) -> SsdOutput:
        softplus, low, high = arguments[TENSORS:]
        return serve(SsdInputs(*arguments[:TENSORS]), softplus, (low, high))

    def shapes(*arguments: Any) -> tuple[Tensor, Tensor]:
        x, A, B = arguments[0], arguments[2], arguments[3]
        return torch.empty_like(x), A.new_empty((x.shape[0], *x.shape[2:], B.shape[-1]))

    def compute(*arguments: Any) -> tuple[Tensor, Tensor]:
        out, final_state = run(arguments)
        return laid_out_like(arguments[0], out), final_state.contiguous()

    def differentiated(arguments: tuple[Any, ...]) -> list[Tensor]:
        return [each for each in arguments[:TENSORS] if each is not None and each.is_floating_point()]

    def gradient_shapes(grad_out: Tensor, grad_final: Tensor, *arguments: Any) -> list[Tensor]:
        return [torch.empty_like(each) for each in differentiated(arguments)]

    def gradients(grad_out: Tensor, grad_final: Tensor, *arguments: Any) -> list[Tensor]:
        leaves = tuple(
            each.detach().requires_grad_() if isinstance(each, Tensor) and each.is_floating_point() else each
            for each in arguments
        )
        with torch.enable_grad():
            outputs = run(leaves)
        given = differentiated(leaves)
        found = torch.autograd.grad(outputs, given, (grad_out, grad_final), materialize_grads=True)
        return [laid_out_like(leaf, gradient) for leaf, gradient in zip(given, found, strict=True)]

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:TENSORS])
        ctx.settings = inputs[TENSORS:]

    def backward(ctx: Any, grad_out: Tensor, grad_final: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors

        def computed(grad_out: Tensor, grad_final: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
            return tuple(torch.ops.scanlab_runtime.ssd_backward(grad_out, grad_final, *tensors, *ctx.settings))

        arguments = (grad_out, grad_final, *differentiated(tensors))
        found = iter(once(computed, *arguments) if torch.is_grad_enabled() else computed(*arguments))
        every = [next(found) if each is not None and each.is_floating_point() else None for each in tensors]
        return *every, *[None] * len(ctx.settings)

    tensors = ", ".join(f"Tensor{'' if name in REQUIRED else '?'} {name}" for name in SsdInputs._fields)
    arguments = f"{tensors}, bool softplus, float lowest_dt, float highest_dt"
    library = define(f"ssd({arguments}) -> (Tensor, Tensor)", compute, shapes)
    torch.library.register_autograd(f"{NAMESPACE}::ssd", backward, setup_context=keep, lib=library)
    define(f"ssd_backward(Tensor grad_out, Tensor grad_final, {arguments}) -> Tensor[]", gradients, gradient_shapes)
    library.impl("ssd_backward", torch.library.fallthrough_kernel, "Autograd")
    flop_formulas.count(NAMESPACE)
