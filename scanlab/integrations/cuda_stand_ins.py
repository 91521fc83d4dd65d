"""Stand in for torch.cuda, torch.accelerator and torch.Generator while cuda devices are mapped to the CPU.

On a CPU calls are done when they return: a stream orders nothing, and an event is a time.
"""

from __future__ import annotations

import functools
import inspect
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
import torch.cuda.graphs
import torch.cuda.nccl
import torch.cuda.profiler

from scanlab.errors import UnavailableError

CAPABILITY = (0, 0)  # below every GPU's: code that asks for a capability takes its simplest path

# Functions that only steer a device, or release its memory.
STEERING = (
    *("synchronize", "empty_cache", "set_device", "init", "_lazy_init", "ipc_collect", "set_stream", "_sleep"),
    *("set_per_process_memory_fraction", "set_rng_state", "set_rng_state_all", "seed", "seed_all"),
    *("reset_peak_memory_stats", "reset_max_memory_allocated", "reset_max_memory_cached"),
    *("reset_accumulated_memory_stats", "_record_memory_history", "_dump_snapshot", "set_sync_debug_mode"),
)


class Event:
    """Event of torch or torch.cuda: a point in time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.time_s: float | None = None

    def record(self, stream: object = None) -> None:
        """Take the time."""
        self.time_s = time.perf_counter()

    def elapsed_time(self, end_event: Event) -> float:
        """Return the milliseconds from this event to `end_event`.

        Raises:
            RuntimeError: One of them was not recorded.
        """
        if self.time_s is None or end_event.time_s is None:
            raise RuntimeError("elapsed_time of an event that was not recorded: call record() on both events first.")
        return 1e3 * (end_event.time_s - self.time_s)

    def query(self) -> bool:
        """Return True: all work is done."""
        return True

    def synchronize(self) -> None:
        """Do nothing."""

    def wait(self, stream: object = None) -> None:
        """Do nothing."""


class Stream:
    """Stream of torch or torch.cuda: a queue that is always empty."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.device = torch.device("cpu")
        self.device_index = self.priority = self.cuda_stream = 0

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def record_event(self, event: Event | None = None) -> Event:
        """Return `event`, or a new one, with the time of this call."""
        event = Event() if event is None else event
        event.record()
        return event

    def query(self) -> bool:
        """Return True: all work is done."""
        return True

    def synchronize(self) -> None:
        """Do nothing."""

    def wait_event(self, event: Event) -> None:
        """Do nothing."""

    def wait_stream(self, stream: Stream) -> None:
        """Do nothing."""


def device_properties(device: object = None) -> SimpleNamespace:
    """Return the CPU and the memory of this machine, by the names that properties of a GPU have."""
    major, minor = CAPABILITY
    return SimpleNamespace(
        name="CPU",
        gcnArchName="CPU",
        major=major,
        minor=minor,
        total_memory=_memory_bytes("SC_PHYS_PAGES"),
        multi_processor_count=os.cpu_count() or 1,
        max_threads_per_multi_processor=1,
        max_threads_per_block=1,
        warp_size=1,
        regs_per_multiprocessor=0,
        shared_memory_per_block=0,
        shared_memory_per_multiprocessor=0,
        L2_cache_size=0,
        is_integrated=1,
        is_multi_gpu_board=0,
    )


def memory_info(device: object = None) -> tuple[int, int]:
    """Return the bytes of memory that are free, and all."""
    return _memory_bytes("SC_AVPHYS_PAGES"), _memory_bytes("SC_PHYS_PAGES")


def _memory_bytes(pages: str) -> int:
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def nvtx_range(*args: object, **kwargs: object) -> Iterator[None]:
    """Run a block, or a function that this decorates, as it is."""
    yield


class Graph:
    """Captured graph of torch.cuda, or its capture: refused, since a replay runs the kernels of a GPU again."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Refuse.

        Raises:
            UnavailableError: Always.
        """
        raise UnavailableError(
            "torch.cuda graphs cannot be captured on a CPU: turn them off in the script (options such as cg=False or"
            " cuda_graph=False), or call the function that would be captured."
        )


def replacements(on_cpu: Callable[[Any], Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield modules and classes, and by name what stands in them.

    Args:
        on_cpu: Returns the CPU for a cuda device, and any other value as it is.
    """
    functions = {
        **{name: _returning(None) for name in STEERING},
        "device_count": _returning(1),
        "current_device": _returning(0),
        "can_device_access_peer": _returning(False),
        "get_device_name": _returning("CPU"),
        "get_device_capability": _returning(CAPABILITY),
        "get_device_properties": device_properties,
        "mem_get_info": memory_info,
        "memory_summary": _returning("no memory of a GPU is in use"),
        "memory_snapshot": lambda *args, **kwargs: [],
        "list_gpu_processes": _returning("no processes are running on a GPU"),
        **{name: _returning(0) for name in ("utilization", "memory_usage", "temperature", "power_draw", "clock_rate")},
        "initial_seed": torch.initial_seed,
        "get_rng_state": lambda device="cuda": torch.get_rng_state(),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "device": nullcontext,
        "device_of": nullcontext,
        "stream": nullcontext,
        "StreamContext": nullcontext,
        "current_stream": lambda device=None: Stream(),
        "default_stream": lambda device=None: Stream(),
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": Graph,
        "make_graphed_callables": lambda callables, *args, **kwargs: callables,
        "is_current_stream_capturing": _returning(False),
    }
    defining = (torch.cuda, torch.cuda.memory, torch.cuda.random, torch.cuda.streams, torch.cuda.graphs)
    for module in defining:
        yield module, {name: each for name, each in functions.items() if hasattr(module, name)}
    yield torch.cuda.profiler, {"profile": nvtx_range, **{n: _returning(None) for n in ("start", "stop", "init")}}
    yield torch.autograd.profiler, {"emit_nvtx": nvtx_range}
    yield torch.cuda.nvtx, {"range": nvtx_range, **{n: _returning(None) for n in ("range_push", "range_pop", "mark")}}
    yield torch.Tensor, {"record_stream": _returning(None)}
    yield torch, {"Event": Event, "Stream": Stream}
    yield torch.accelerator, {n: each for n, each in _accelerator().items() if hasattr(torch.accelerator, n)}
    yield torch.cuda.nccl, {"version": _returning((0, 0, 0)), "is_available": _returning(False)}
    yield torch, {"Generator": _generator_on_cpu(torch.Generator, on_cpu)}
    yield torch, {"get_device_module": _device_module}
    yield torch.random, {"fork_rng": _forked_on_cpu(torch.random.fork_rng)}
    yield torch, {"set_default_tensor_type": _default_type_on_cpu(torch.set_default_tensor_type)}


def _accelerator() -> dict[str, Any]:
    """Return what stands in torch.accelerator, of which each release of torch has a part."""
    steering = ("synchronize", "set_device_index", "set_device_idx", "set_stream", "empty_cache", "empty_host_cache")
    resets = ("reset_peak_memory_stats", "reset_accumulated_memory_stats")
    sizes = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")
    return {
        **{name: _returning(None) for name in (*steering, *resets)},
        **{name: _returning(0) for name in ("current_device_index", "current_device_idx", *sizes)},
        "current_stream": lambda device=None: Stream(),
        "memory_stats": lambda device=None: {},
        "get_memory_info": memory_info,
    }


def _returning(value: Any) -> Callable[..., Any]:
    """Return a new function for each name: TorchDynamo refuses to find one object under two names."""
    return lambda *args, **kwargs: value


def _generator_on_cpu(generator: type[torch.Generator], on_cpu: Callable[[Any], Any]) -> type[torch.Generator]:
    """Return a class that makes generators of the CPU, and of which every generator is an instance."""

    class AnyGenerator(type(generator)):  # type: ignore[misc]
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, generator)

    class Generator(generator, metaclass=AnyGenerator):  # type: ignore[misc, valid-type]
        def __new__(cls, device: Any = "cpu") -> torch.Generator:  # type: ignore[misc]
            return generator(on_cpu(device))

    return Generator


@functools.wraps(inspect.unwrap(torch.get_device_module))  # TorchDynamo looks torch's own up by __wrapped__
def _device_module(device: torch.device | str | None = None) -> Any:
    """Return the module of a device, `torch.cuda` for "cuda"; torch's own function would keep the answer for ever."""
    name = "cpu" if device is None else str(device).partition(":")[0]
    found = getattr(torch, name, None)
    if found is None:
        raise RuntimeError(f"torch has no module for {device}: must be a device such as 'cpu' or 'cuda'.")
    return found


def _forked_on_cpu(fork_rng: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fork_rng` for the generator of the CPU, whatever devices are named."""

    def fork_on_cpu(devices: object = None, enabled: bool = True, *args: Any, **kwargs: Any) -> Any:
        return fork_rng((), enabled)

    return fork_on_cpu


def _default_type_on_cpu(set_default_tensor_type: Callable[[Any], None]) -> Callable[[Any], None]:
    def set_on_cpu(t: Any) -> None:
        set_default_tensor_type(t.replace("torch.cuda.", "torch.") if isinstance(t, str) else t)

    return set_on_cpu
