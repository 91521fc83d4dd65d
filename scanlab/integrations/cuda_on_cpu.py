"""Run code that asks for CUDA on the CPU, for a block or for a script (`scanlab run --cpu`)."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from scanlab.integrations import cuda_parallel, cuda_stand_ins

NOTICE = "scanlab: this machine has no CUDA; code for a cuda device runs on the CPU."

CUDA_DEVICE = re.compile(r"cuda(:\d+)?")
CUDA_TYPE = re.compile(r"^torch\.cuda\.(\w+Tensor)$")
TENSOR_TYPES = (
    *("FloatTensor", "DoubleTensor", "HalfTensor", "BFloat16Tensor"),
    *("LongTensor", "IntTensor", "ShortTensor", "ByteTensor", "CharTensor", "BoolTensor"),
)


@contextmanager
def on_cpu(*, announce: bool = True) -> Iterator[None]:
    """Map cuda devices to the CPU within a `with` block; where CUDA is available, do nothing.

    Tensors, modules and factory functions take "cuda", "cuda:1", `torch.device("cuda")` and, as a device, an index.
    `torch.load` loads to the CPU. Calls of `torch.cuda` that only steer the device do nothing; events measure time, and
    streams, generators and properties of a device are the CPU's; graphs are refused. Process groups of nccl are made
    with gloo, DistributedDataParallel takes no devices, and in one process BatchNorm stands for SyncBatchNorm. PyTorch
    itself turns autocast and GradScaler for cuda off without CUDA, with a warning: the block runs in the dtypes of its
    tensors. The constructor of the class, `torch.Tensor(3, device="cuda")`, raises: write `torch.empty`.
    `torch.cuda.is_available()` stays False, so that code with a path for the CPU takes it; `device_count()` is 1.

    The mapping holds in the thread that enters the block and in every `threading.Thread` started within it, those of
    executors included; there it lasts for the life of the thread. In threads that run already, device arguments
    ("cuda" in `torch.ones(3, device="cuda")`) are not mapped.

    Args:
        announce: Say so in one line on stderr.
    """
    if torch.cuda.is_available():
        yield
        return
    if announce:
        print(NOTICE, file=sys.stderr)
    with ExitStack() as stack:
        for owner, replacements in _replacements():
            for name, replacement in replacements.items():
                stack.enter_context(_replaced(owner, name, replacement))
        stack.enter_context(_DevicesOnCpu())
        yield


class _DevicesOnCpu(TorchFunctionMode):
    """Replace cuda devices among the arguments of PyTorch's functions and methods."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        positional = [_on_cpu(each) for each in args]
        named = {name: _on_cpu(value) for name, value in (kwargs or {}).items()}
        if _is_index(named.get("device")):
            named["device"] = "cpu"
        place = 1 if func is torch.Tensor.to else 0
        if func in (torch.Tensor.to, torch.device) and len(positional) > place and _is_index(positional[place]):
            positional[place] = "cpu"
        if named.get("pin_memory"):  # only memory of a host with CUDA can be pinned
            named["pin_memory"] = False
        return func(*positional, **named)


def _on_cpu(value: Any) -> Any:
    """Return the CPU for a cuda device or its name, its type of tensors likewise, and any other value as it is."""
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "cuda" else value
    if not isinstance(value, str):
        return value
    return "cpu" if CUDA_DEVICE.fullmatch(value) else CUDA_TYPE.sub(r"torch.\1", value)


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _replacements() -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield classes and modules, each with its replacements by name while cuda is mapped."""
    load, set_default_device, to = torch.load, torch.set_default_device, torch.nn.Module.to

    def load_on_cpu(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        return load(f, map_location if callable(map_location) else "cpu", *args, **kwargs)

    def set_default_device_on_cpu(device: Any) -> None:
        set_default_device("cpu" if _is_index(device) else _on_cpu(device))

    def to_on_cpu(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        places: list[Any] = ["cpu" if _is_index(each) else each for each in args]
        return to(self, *places, **kwargs)

    yield threading.Thread, {"start": _start_on_cpu(threading.Thread.start)}
    yield torch.Tensor, {"cuda": _itself, "pin_memory": _itself}
    yield torch.nn.Module, {"cuda": _itself, "to": to_on_cpu}
    yield torch.UntypedStorage, {"cuda": _itself, "__new__": _storage_on_cpu(torch.UntypedStorage.__new__)}
    yield torch.TypedStorage, {"cuda": _itself}
    yield torch, {"load": load_on_cpu, "set_default_device": set_default_device_on_cpu}
    yield torch.cuda, {name: getattr(torch, name) for name in TENSOR_TYPES}
    yield from cuda_stand_ins.replacements(_on_cpu)
    yield from cuda_parallel.replacements()


def _start_on_cpu(start: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    """Return `threading.Thread.start` for threads that map devices, which torch does by thread."""

    def start_on_cpu(thread: threading.Thread) -> None:
        run = thread.run

        def run_on_cpu() -> None:
            with _DevicesOnCpu():
                run()

        thread.run = run_on_cpu  # type: ignore[method-assign]
        start(thread)

    return start_on_cpu


def _storage_on_cpu(new: Callable[..., Any]) -> Callable[..., Any]:
    """Return the constructor of untyped storages, which modes do not see, with the CPU for a cuda device."""

    def new_on_cpu(cls: type, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        place = {} if device is None else {"device": "cpu" if _is_index(device) else _on_cpu(device)}
        return new(cls, *args, **place, **kwargs)

    return new_on_cpu


def _itself(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self


@contextmanager
def _replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    """Set an attribute within a `with` block; afterwards it is inherited again where it was inherited before."""
    own = vars(owner).get(name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)
