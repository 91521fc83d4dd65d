"""Registration of the gradients of C++ ops, or of their refusal, which LibTorch's stable ABI cannot express.

An op is entered in one of two ways. Torch's dispatcher runs the kernel that is registered here for autograd, which
looks for gradients and tangents before it runs the C++ kernel. A function of `direct` does the same with half the
overhead, where no transform or tracing is under way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import _C
from torch._functorch.utils import enable_single_level_autograd_function
from torch._ops import OpOverload
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from scanlab.errors import ProblemError

# A node of autograd's graph: a subclass of _SingleLevelFunction, which has no types.
Node = Any

# Advice of the errors on derivatives that the ops of a Mamba block do not have.
MIXER_CURE = "call inside scanlab.runtime.ops.in_torch()."

_libraries: dict[str, torch.library.Library] = {}
_nodes: dict[OpOverload, Node | None] = {}


def direct(op: OpOverload) -> Callable[..., Any]:
    """Return a function equal to `op`, which was registered here, that enters the dispatcher only once."""
    node, run = _nodes[op], op._op
    end = 1 + max(at for at, each in enumerate(op._schema.arguments) if "Tensor" in str(each.type))

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or forward_ad._current_level >= 0 or _C._are_functorch_transforms_active():
            return op(*arguments)
        if _C._is_tracing():  # the graph shall hold the op, not its node in autograd
            return op(*arguments)
        if node is not None and torch.is_grad_enabled() and _C._any_requires_grad(*arguments[:end]):
            return node.apply(None, *arguments)
        if torch.is_inference_mode_enabled():  # which keeps autograd out by itself
            return run(*arguments)
        with _C._AutoDispatchBelowAutograd():
            return run(*arguments)

    return call


def direct_ops(namespace: str) -> dict[str, Callable[..., Any]]:
    """Return `direct(op)` for the ops of a namespace that were registered here, by their names."""
    return {op._opname: direct(op) for op in _nodes if op.namespace == namespace}


def register_shapes(op: OpOverload, shapes: Callable[..., Any]) -> None:
    """Register a function of the arguments of `op` that returns empty tensors like its results, for tracing.

    Where arguments lie on several devices it raises ProblemError: a call of tensors with and without data would leave
    results unwritten.
    """

    def checked(*arguments: Any) -> Any:
        devices = [argument.device for argument in arguments if isinstance(argument, torch.Tensor)]
        for device in devices:
            if device != devices[0]:
                raise ProblemError(f"tensors are on {devices[0]} and on {device}: move all to one device.")
        return shapes(*arguments)

    torch.library.register_fake(op.name(), checked)


def register_gradients(
    op: OpOverload, keep: Callable[..., None], gradients: Callable[..., tuple[Any, ...]], cure: str
) -> Callable[..., Any]:
    """Register the derivative of `op`, and return `direct(op)`.

    Args:
        op: The op, of tensors and numbers.
        keep: Called with a context, the arguments and the results; saves the tensors of the gradients in the context.
        gradients: Called with the context and the gradients of the results; returns those of the arguments.
        cure: The end of the message of the NotImplementedError that forward-mode differentiation raises.
    """

    class Differentiable(_SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, keys: Any, *arguments: Any) -> Any:
            results = _run_kernels(op, keys, arguments)
            keep(ctx, arguments, results)
            return results

        @staticmethod
        def backward(ctx: Any, *results: Any) -> tuple[Any, ...]:
            return None, *gradients(ctx, *results)

    return _register(op, Differentiable, cure)


def refuse_gradients(op: OpOverload, cure: str) -> Callable[..., Any]:
    """Let derivatives of `op` raise NotImplementedError, not be those of a constant; return `direct(op)`.

    Args:
        op: The op.
        cure: The end of the message.
    """

    class Undifferentiable(_SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, keys: Any, *arguments: Any) -> Any:
            return _run_kernels(op, keys, arguments)

        @staticmethod
        def backward(ctx: Any, *results: Any) -> NoReturn:
            raise NotImplementedError(f"{op.name()} has no derivative: {cure}")

    return _register(op, Undifferentiable, cure)


def ignore_gradients(op: OpOverload, cure: str) -> Callable[..., Any]:
    """Record no graph of `op`, as upstream, but refuse tangents; return `direct(op)`.

    Args:
        op: The op.
        cure: The end of the message of the NotImplementedError that forward-mode differentiation raises.
    """
    return _register(op, None, cure)


def _register(op: OpOverload, node: Node | None, cure: str) -> Callable[..., Any]:
    def kernel(keys: Any, *arguments: Any) -> Any:
        if forward_ad._current_level >= 0:
            _refuse_tangents(op, arguments, cure)
        if node is None or not (torch.is_grad_enabled() and _C._any_requires_grad(*arguments)):
            return _run_kernels(op, keys, arguments)
        # A transform that is under way has come to its own level of gradients; those below it follow in the kernels.
        with enable_single_level_autograd_function():
            return node.apply(keys, *arguments)

    _nodes[op] = node
    library = _libraries.get(op.namespace)
    if library is None:
        library = _libraries[op.namespace] = torch.library.Library(op.namespace, "IMPL")
    library.impl(op._opname, kernel, "Autograd", with_keyset=True)
    return direct(op)


def _run_kernels(op: OpOverload, keys: Any, arguments: tuple[Any, ...]) -> Any:
    with _C._AutoDispatchBelowAutograd():
        return op(*arguments) if keys is None else op.redispatch(keys & _C._after_autograd_keyset, *arguments)


def _refuse_tangents(op: OpOverload, arguments: tuple[Any, ...], cure: str) -> None:
    for argument in arguments:
        if isinstance(argument, torch.Tensor) and forward_ad.unpack_dual(argument).tangent is not None:
            raise NotImplementedError(f"{op.name()} has no forward-mode derivative: {cure}")
