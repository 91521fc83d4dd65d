"""The three implementations of the ops around the scan: PyTorch everywhere, C++ on the CPU, Triton on a GPU.

Each has every op under the same name and with the same arguments, those of `torch.ops.scanlab_mixer`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch

from scanlab.contract.backend import Backend, OpCapabilities, OpFn
from scanlab.contract.base import DTYPES, Problem
from scanlab.contract.cpu import pinned, threads_tunable
from scanlab.contract.space import Config, Space
from scanlab.errors import UnavailableError
from scanlab_kernels.build import PACKAGE, headers
from scanlab_kernels.cpu import extension
from scanlab_kernels.gpu import version
from scanlab_kernels.selective_scan.triton import backend as triton_scan

Name = Literal["torch", "native", "triton"]
# (problem, namespace of the ops) -> the op on the NamedTuple of its inputs
Caller = Callable[[Any, Any], OpFn]


@dataclass(frozen=True)
class Implementation:
    """Implementation of all ops around the scan.

    Args:
        name: As SCANLAB_MIXER names it.
        summary: Language of the kernels, in a line.
        rank: Position in an order by simplicity.
        capabilities: The problems that it can solve.
        load: Makes its ops callable, and returns its name with its instruction set; raises UnavailableError.
        ops: () -> namespace of its ops, once they are loaded.
        unavailable: () -> why it cannot run here, or None.
    """

    name: Name
    summary: str
    rank: int
    capabilities: OpCapabilities
    load: Callable[[], str]
    ops: Callable[[], Any]
    unavailable: Callable[[], str | None]

    def backend(self, op: str, call: Caller, folder: Path, *files: str, gradients: bool = True) -> Backend:
        """Return the backend of an op by this implementation.

        Args:
            op: Name of the op.
            call: Makes the function of a problem out of the namespace of ops.
            folder: The op's folder.
            files: Names of the files in it that hold the implementation, beside headers and `op.py`.
            gradients: Whether the op has gradients.
        """

        def make(problem: Problem, config: Config) -> OpFn:
            self.load()
            return pinned(call(problem, self.ops()), int(config.get("threads", 0)))

        own = [folder / name for name in ("op.py", *files)]
        shared = (*headers(folder), *headers(PACKAGE / "cpu")) if self.name == "native" else ()
        return Backend(
            name=f"{op}_{self.name}",
            summary=self.summary,
            rank=self.rank,
            sources=(*own, *shared),
            space=Space((threads_tunable(),) if "cpu" in self.capabilities.devices else ()),
            capabilities=replace(self.capabilities, gradients=gradients),
            make=make,
            unavailable=self.unavailable,
            explicit_only=self.name == "triton" and triton_scan.INTERPRETED,
            op=op,
        )


def pytorch() -> ModuleType:
    """Return the module of the ops in PyTorch; imported here because it imports every op, and they this module."""
    from scanlab_kernels import pytorch as module

    return module


def load_triton() -> str:
    """Load the GPU ops and return their name.

    Raises:
        UnavailableError: No Triton kernel runs here.
    """
    reason = triton_scan.unavailable()
    if reason is not None:
        raise UnavailableError(f"triton cannot run here: {reason}")
    if triton_scan.INTERPRETED:
        version.prepare_interpreter()
    import scanlab_kernels.gpu.ops  # noqa: F401 - registers the ops; imported here because it imports triton

    return "Triton, interpreted on the CPU" if triton_scan.INTERPRETED else "Triton"


TORCH = Implementation(
    name="torch",
    summary="PyTorch",
    rank=0,
    capabilities=OpCapabilities(devices=("cpu", "cuda"), dtypes=tuple(DTYPES), gradients=True),
    load=lambda: "PyTorch",
    ops=pytorch,
    unavailable=lambda: None,
)
NATIVE = Implementation(
    name="native",
    summary="C++, vectorised for each instruction set",
    rank=1,
    capabilities=OpCapabilities(dtypes=tuple(DTYPES), gradients=True),
    load=extension.load,
    ops=lambda: extension.ops,
    unavailable=extension.unavailable,
)
TRITON = Implementation(
    name="triton",
    summary="Triton, on a GPU",
    rank=2,
    capabilities=OpCapabilities(
        devices=("cpu",) if triton_scan.INTERPRETED else ("cuda",),
        dtypes=("float32", "bfloat16", "float16"),
        gradients=True,
    ),
    load=load_triton,
    ops=lambda: torch.ops.scanlab_mixer_triton,
    unavailable=triton_scan.unavailable,
)
BY_NAME = {each.name: each for each in (TORCH, NATIVE, TRITON)}
