"""The scan as one torch op, for torch.compile, torch.export and torch.jit.trace, which build a graph of a program.

The graph holds the op, and the op asks the dispatcher when the graph runs. Lengths may therefore be free, and the
choice is that of the machine on which the graph runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scanlab.contract.backend import ScanFn
from scanlab.contract.problem import Direction, ScanInputs, ScanOutput, ScanProblem
from scanlab.runtime.promotion import promoted_scan
from scanlab_kernels import flop_formulas
from scanlab_kernels.autograd import once
from scanlab_kernels.selective_scan import scan_operator
from scanlab_kernels.selective_scan.arguments import PER_DIRECTION, TENSORS, directions

NAMESPACE = "scanlab_runtime"
REQUIRED = ("u", "delta", "A", "B", "C")  # of the first direction

Serve = Callable[..., ScanOutput]

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def is_traced() -> bool:
    """Return whether torch is building a graph of the running code."""
    return torch.compiler.is_compiling() or torch._C._is_tracing()


def exports_to_onnx() -> bool:
    """Return whether torch.onnx.export is running."""
    onnx = sys.modules.get("torch.onnx")
    return onnx is not None and onnx.is_in_onnx_export()


exports_to_onnx._dynamo_marked_constant = True  # type: ignore[attr-defined]


def scan(
    inputs: tuple[ScanInputs, ...],
    delta_softplus: bool,
    direction: Direction,
    promote: bool = False,
    backend: str | None = None,
) -> ScanOutput:
    """Return the scan of these tensors as a node of the graph: the op, or for ONNX torch's scan operator.

    Args:
        inputs: One set for each direction.
        delta_softplus: Apply softplus to the step sizes.
        direction: Order of time.
        promote: Promote mixed dtypes.
        backend: Name of the backend that is to serve; None lets the dispatcher choose.

    Raises:
        UnavailableError: The graph is for ONNX, and ONNX cannot hold this scan.
    """
    if exports_to_onnx():
        return scan_operator.scan(*inputs, delta_softplus=delta_softplus, direction=direction)
    tensors = [tensor for each in inputs for tensor in each]
    absent = [None] * (TENSORS - PER_DIRECTION * len(inputs))
    out, last_state = torch.ops.scanlab_runtime.scan(*tensors, *absent, delta_softplus, direction, promote, backend)
    return ScanOutput(out, last_state)


def on_meta(problem: ScanProblem) -> ScanFn:
    """Return the scan of tensors without data: it gives their shapes."""
    return lambda *inputs: scan(inputs, problem.delta_softplus, problem.direction)


def register(serve: Serve) -> None:
    """Define the op; once in a process.

    Args:
        serve: Computes a scan of sets of inputs, with the keywords delta_softplus, direction, promote and backend.
    """

    def run(*arguments: Any) -> ScanOutput:
        names = ("delta_softplus", "direction", "promote", "backend")
        return serve(*directions(arguments), **dict(zip(names, arguments[TENSORS:], strict=True)))

    def shapes(*arguments: Any) -> ScanOutput:
        inputs = directions(arguments)
        first = promoted_scan(inputs[0]) if arguments[TENSORS + 2] else inputs[0]
        state = (first.u.shape[0], *first.A.shape)
        last_state = first.A.new_empty((2, *state) if len(inputs) == 2 else state)
        return ScanOutput(torch.empty_like(first.u), last_state)

    tensors = [
        f"Tensor{'?' * (bool(suffix) or name not in REQUIRED)} {name}{suffix}"
        for suffix in ("", "_reverse")
        for name in ScanInputs._fields
    ]
    define("scan", tensors, "bool delta_softplus, str direction, bool promote, str? backend", run, shapes)


def define(
    name: str,
    tensors: Sequence[str],
    settings: str,
    run: Callable[..., tuple[Tensor, Tensor]],
    shapes: Callable[..., tuple[Tensor, Tensor]],
) -> None:
    """Define a differentiable op with two outputs, the first laid out like its first argument, and its backward op.

    Args:
        name: Name of the op.
        tensors: Parameters of its schema that are tensors, which come first.
        settings: Other parameters of the schema, none of them a tensor.
        run: Computes the outputs, differentiably.
        shapes: Returns empty tensors like the outputs.
    """
    count = len(tensors)

    def compute(*arguments: Any) -> tuple[Tensor, Tensor]:
        out, state = run(*arguments)
        return laid_out_like(arguments[0], out), state.contiguous()

    def gradient_shapes(grad_out: Tensor, grad_state: Tensor, *arguments: Any) -> list[Tensor]:
        return [torch.empty_like(each) for each in arguments[:count] if _is_differentiable(each)]

    def gradients(grad_out: Tensor, grad_state: Tensor, *arguments: Any) -> list[Tensor]:
        leaves = [each.detach().requires_grad_() if _is_differentiable(each) else each for each in arguments[:count]]
        with torch.enable_grad():
            outputs = run(*leaves, *arguments[count:])
        given = [each for each in leaves if _is_differentiable(each)]
        found = torch.autograd.grad(outputs, given, (grad_out, grad_state), materialize_grads=True)
        return [laid_out_like(leaf, gradient) for leaf, gradient in zip(given, found, strict=True)]

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:count])
        ctx.settings = inputs[count:]

    def backward(ctx: Any, grad_out: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        op = getattr(torch.ops.scanlab_runtime, f"{name}_backward")

        def computed(grad_out: Tensor, grad_state: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
            return tuple(op(grad_out, grad_state, *saved, *ctx.settings))

        given = (grad_out, grad_state, *filter(_is_differentiable, saved))
        found = iter(once(computed, *given) if torch.is_grad_enabled() else computed(*given))
        return *(next(found) if _is_differentiable(each) else None for each in saved), *[None] * len(ctx.settings)

    arguments = f"{', '.join(tensors)}, {settings}"
    _define(f"{name}({arguments}) -> (Tensor, Tensor)", compute, shapes)
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=keep, lib=_library)
    _define(f"{name}_backward(Tensor grad_out, Tensor grad_state, {arguments}) -> Tensor[]", gradients, gradient_shapes)
    _library.impl(f"{name}_backward", torch.library.fallthrough_kernel, "Autograd")
    flop_formulas.count(NAMESPACE)


def _define(signature: str, compute: Callable[..., Any], shapes: Callable[..., Any]) -> None:
    name = signature.partition("(")[0]
    _library.define(signature)
    _library.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", shapes, lib=_library)


def _is_differentiable(tensor: Tensor | None) -> bool:
    return tensor is not None and (tensor.is_floating_point() or tensor.is_complex())


def laid_out_like(like: Tensor, tensor: Tensor) -> Tensor:
    """Return `tensor` with the strides that torch.empty_like gives for `like`, which a graph counts on."""
    expected = torch.empty_like(like, dtype=tensor.dtype, device="meta")
    if tensor.stride() == expected.stride():
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
