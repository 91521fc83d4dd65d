"""Stand in for training on several GPUs while cuda devices are mapped to the CPU.

The CPU counts as one device: what is copied to several devices is copied there once for each, and what is divided among
them is computed at once where only the result is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.cuda.comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parallel._functions import Broadcast, Gather

from scanlab.errors import UnavailableError


def replacements() -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield modules and classes, and by name what stands in them."""
    copies = {
        "broadcast": broadcast,
        "broadcast_coalesced": broadcast_coalesced,
        "reduce_add": reduce_add,
        "reduce_add_coalesced": reduce_add_coalesced,
        "scatter": scatter,
        "gather": gather,
    }
    yield torch.nn.parallel.comm, copies
    yield torch.cuda.comm, copies
    yield Gather, {"apply": lambda device, dim, *parts: gather([torch.atleast_1d(part) for part in parts], dim)}
    yield Broadcast, {"apply": lambda devices, *inputs: tuple(each.clone() for _ in devices for each in inputs)}
    yield nn.SyncBatchNorm, {"convert_sync_batchnorm": staticmethod(_unsynchronized)}
    yield nn.parallel, {"data_parallel": _undivided}
    if torch.distributed.is_available():
        yield torch.distributed, {"init_process_group": _group_on_cpu(torch.distributed.init_process_group)}
        yield DistributedDataParallel, {"__init__": _parallel_on_cpu(DistributedDataParallel.__init__)}


def broadcast(tensor: Tensor, devices: Sequence[Any] | None = None, *, out: Sequence[Tensor] | None = None) -> Any:
    """Return a copy of a tensor for each device, or copy it into each tensor of `out`."""
    if out is None:
        return tuple(tensor.clone() for _ in devices or ())
    return tuple(each.copy_(tensor) for each in out)


def broadcast_coalesced(tensors: Sequence[Tensor], devices: Sequence[Any], buffer_size: int = 0) -> list[Any]:
    """Return copies of several tensors for each device."""
    return [tuple(tensor.clone() for tensor in tensors) for _ in devices]


def reduce_add(inputs: Sequence[Tensor], destination: Any = None) -> Tensor:
    """Return the sum of tensors, one from each device."""
    return torch.stack(tuple(inputs)).sum(0)


def reduce_add_coalesced(inputs: Sequence[Any], destination: Any = None, buffer_size: int = 0) -> tuple[Tensor, ...]:
    """Return the sums over the devices of several tensors, given by device."""
    return tuple(reduce_add(each) for each in zip(*inputs, strict=True))


def scatter(
    tensor: Tensor,
    devices: Sequence[Any] | None = None,
    chunk_sizes: Sequence[int] | None = None,
    dim: int = 0,
    streams: object = None,
    *,
    out: Sequence[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """Return the parts of a tensor, one for each device, or copy them into the tensors of `out`."""
    if out is not None:
        parts = torch.split(tensor, [each.shape[dim] for each in out], dim)
        return tuple(each.copy_(part) for each, part in zip(out, parts, strict=True))
    if chunk_sizes is not None:
        return torch.split(tensor, list(chunk_sizes), dim)
    return tensor.chunk(len(devices or ()), dim)


def gather(tensors: Sequence[Tensor], dim: int = 0, destination: Any = None, *, out: Tensor | None = None) -> Tensor:
    """Return the parts from several devices as one tensor."""
    return torch.cat(tuple(tensors), dim, out=out)


def _undivided(module: nn.Module, inputs: Any, *args: Any, module_kwargs: Any = None, **kwargs: Any) -> Any:
    """Return the output of `torch.nn.parallel.data_parallel` for all inputs at once."""
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    return module(*inputs, **(module_kwargs or {}))


def _unsynchronized(module: nn.Module, process_group: Any = None) -> nn.Module:
    """Return a module as it is instead of with SyncBatchNorm, which needs GPUs; in one process both are the same.

    Raises:
        UnavailableError: The process group has several processes.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        processes = torch.distributed.get_world_size(process_group)
        if processes > 1:
            raise UnavailableError(
                f"SyncBatchNorm needs GPUs, and {processes} processes train here: run one, or leave out"
                " convert_sync_batchnorm; each process then normalises by its own batches."
            )
    return module


def _group_on_cpu(init_process_group: Callable[..., None]) -> Callable[..., None]:
    """Return `init_process_group` with gloo for nccl, and without a device."""

    def init_on_cpu(backend: str | None = None, *args: Any, device_id: Any = None, **kwargs: Any) -> None:
        init_process_group("gloo" if backend is not None and "nccl" in backend else backend, *args, **kwargs)

    return init_on_cpu


def _parallel_on_cpu(init: Callable[..., None]) -> Callable[..., None]:
    """Return the constructor of DistributedDataParallel without devices, as modules of the CPU need it."""

    def init_on_cpu(
        self: Any, module: Any, device_ids: Any = None, output_device: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        init(self, module, None, None, *args, **kwargs)

    return init_on_cpu
