"""Kernel launches whose arguments Triton inspects once for each kind of call.

Triton inspects every argument of every call to find the code that it compiled for its kind: types, integers that are 1
or divisible by 16, addresses that are. That takes the host longer than a small kernel takes a GPU. So a `Launch`
lets Triton inspect its arguments the first time only, and a `LaunchCache` finds the launches of calls of the same
kind. Nothing here waits for a GPU or allocates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from scanlab.errors import RejectedError
from scanlab_kernels.gpu import version

T = TypeVar("T")
ALIGNED_BYTES = 16  # Triton compiles other code for addresses that are divisible by it
MAX_KINDS = 4096


def kind_of(argument: Any) -> object:
    """Return all of a tensor that the code and the numbers of a launch depend on; of a tuple, that of its members."""
    if isinstance(argument, torch.Tensor):
        return argument.shape, argument.dtype, argument.stride(), argument.data_ptr() % ALIGNED_BYTES
    return tuple([kind_of(each) for each in argument]) if isinstance(argument, tuple) else argument


class LaunchCache(dict[object, T]):
    """Prepared launches by kind of call, emptied when there are `MAX_KINDS`. Safe to use from several threads."""

    def remember(self, kind: object, prepared: T) -> None:
        """Keep the launches that were prepared for a kind."""
        if len(self) >= MAX_KINDS:
            self.clear()
        self[kind] = prepared


class Launch:
    """A kernel with its grid, its numbers and its compiler options; called with its tensors.

    Every call has to pass tensors of one kind, on one GPU.

    Args:
        kernel: The function that `triton.jit` returned; tensors are its first parameters.
        programs: Size of the grid. Nothing is launched where it is 0.
        numbers: The other parameters of the kernel by name.
        warps: Warps of one program.
        registers: Registers of a thread at most; 0 sets no limit.
    """

    def __init__(
        self, kernel: Any, programs: int, numbers: dict[str, Any], *, warps: int = 1, registers: int = 0
    ) -> None:
        self.kernel, self.programs, self.numbers = kernel, programs, numbers
        # Fusing products and sums is the default of some versions only.
        self.options = {"num_warps": warps, "enable_fp_fusion": True, **({"maxnreg": registers} if registers else {})}
        self._compiled: Callable[..., None] | None = None
        self._rest: list[Any] = []

    def __call__(self, *tensors: Any) -> None:
        """Queue the kernel on the current stream; in Triton's interpreter, compute.

        Raises:
            RejectedError: The kernel does not compile for this GPU or does not fit on it.
        """
        if self._compiled is not None:
            self._compiled(*tensors, *self._rest)
        elif self.programs:
            compiled = self._first(tensors)
            if not version.interpreted():
                self._rest = [self.numbers[name] for name in self.kernel.arg_names[len(tensors) :]]
                self._compiled = compiled[(self.programs, 1, 1)]

    def _first(self, tensors: tuple[Any, ...]) -> Any:
        from triton.errors import TritonError

        try:
            return self.kernel[(self.programs,)](*tensors, **self.numbers, **self.options)
        except (TritonError, RuntimeError) as error:
            raise RejectedError(
                f"the Triton kernel {self.kernel.fn.__module__}.{self.kernel.fn.__name__} cannot be launched with"
                f" {self.options} on this GPU: {error}; choose another configuration or another backend."
            ) from error


_launches: LaunchCache[Launch] = LaunchCache()


def launch(tensors: tuple[Any, ...], settings: object, make: Callable[[], Launch]) -> None:
    """Queue a kernel on the GPU of its first tensor, with the launch of an earlier call of its kind where there is one.

    Args:
        tensors: The tensors of the kernel, or tuples of tensors; None for absent ones.
        settings: The name of the kernel, and all that its numbers depend on beside the tensors; hashable.
        make: Returns the launch.
    """
    first = tensors[0]
    kind = settings, first.get_device(), kind_of(tensors)
    found = _launches.get(kind)
    new = found is None
    if found is None:
        found = make()
    with torch.cuda.device_of(first):
        found(*tensors)
    if new:
        _launches.remember(kind, found)
