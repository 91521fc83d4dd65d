"""Kernels in the queue of a GPU: a launch with all of its arguments, and the same one again with other tensors.

Triton looks at every argument of every call, to find the code that it compiled for their kind: types, numbers that
are 1 or divisible by 16, addresses that are. That takes the host longer than a small kernel takes a GPU. So who knows
that two calls are of one kind launches the second by `Launch.again`. Nothing here waits for a GPU or allocates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from scanlab_kernels.gpu import version as triton_version

T = TypeVar("T")
ALIGNED_BYTES = 16  # what Triton compiles for, where an address is divisible by it
MOST_KINDS = 4096


def kinds_of(tensors: Iterable[Tensor | None]) -> tuple[object, ...]:
    """What kernels are compiled and launched for of each tensor, beside its shape; None of none."""
    return tuple(
        [None if each is None else (each.dtype, each.stride(), each.data_ptr() % ALIGNED_BYTES) for each in tensors]
    )


class Launch(NamedTuple):
    """One call of a kernel: how many programs, with what, compiled how.

    tensors  the first parameters of the kernel; `numbers` are all others
    """

    kernel: Any
    programs: int
    tensors: dict[str, Any]
    numbers: dict[str, Any]
    options: dict[str, int]

    @property
    def arguments(self) -> dict[str, Any]:
        """All parameters of the kernel by name."""
        return self.tensors | self.numbers

    def run(self) -> Any:
        """Queue the kernel on the current stream, and return it compiled; in Triton's interpreter, compute."""
        return self.kernel[(self.programs,)](**self.arguments, **self.options)

    def again(self) -> Callable[..., None]:
        """Queue the kernel as `run` does, and return what queues it again with other tensors in the order of these.

        They have to be of the same kinds, and on the same GPU.
        """
        compiled = self.run()
        if triton_version.interpreted():
            return lambda *tensors: self.kernel[(self.programs,)](*tensors, **self.numbers, **self.options)
        launch = compiled[(self.programs, 1, 1)]
        rest = [self.numbers[name] for name in self.kernel.arg_names[len(self.tensors) :]]
        return lambda *tensors: launch(*tensors, *rest)


class Known(dict[object, T]):
    """What is known of each kind of calls; it begins anew where there are too many. Safe from several threads."""

    def learn(self, kind: object, what: T) -> None:
        """Remember this."""
        if len(self) >= MOST_KINDS:
            self.clear()
        self[kind] = what


def run(launch: Launch, where: Tensor) -> None:
    """Queue the kernel on the GPU that `where` is on; of nothing, nothing."""
    if launch.programs:
        with torch.cuda.device_of(where):
            launch.run()


_known: Known[Callable[..., None]] = Known()


def queue(
    launch_of: Callable[[], Launch], tensors: tuple[Any, ...], given: tuple[Tensor | None, ...], settings: object
) -> None:
    """Queue a kernel as `run` does; one of a kind that was seen before without asking for its launch.

    tensors   of the launch, as they are where none of those given has to be copied; some in tuples
    given     all of them
    settings  what tells the kind beside the tensors
    """
    where = given[0]
    assert where is not None, "what a kernel is queued for stands first"
    shapes = tuple([None if each is None else each.shape for each in given])
    kind = settings, shapes, kinds_of(given), where.get_device()
    again = _known.get(kind)
    if again is None:
        launch = launch_of()
        if launch.programs and addresses(launch.tensors.values()) == addresses(tensors):
            with torch.cuda.device_of(where):
                _known.learn(kind, launch.again())
        else:
            run(launch, where)
        return
    with torch.cuda.device_of(where):
        again(*tensors)


def addresses(values: Iterable[Any]) -> list[object]:
    """Where the tensors of a launch lie."""
    return [
        addresses(each) if isinstance(each, tuple) else None if each is None else each.data_ptr() for each in values
    ]
