"""What a kernel becomes on a GPU, without one: compiled for a target, and its machine code counted."""

from __future__ import annotations

import collections
import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from scanlab.kernels.triton_tile import Launch

HOPPER = 90
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*?);")
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")


@dataclass(frozen=True)
class MachineCode:
    """The resources of a compiled kernel, and the instructions of its hottest loop by name.

    registers      of one thread
    stack_bytes    of one thread; not 0 where registers were spilled
    shared_bytes   of one program
    loop           how often each instruction stands in the longest innermost loop
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    loop: dict[str, int]

    def count(self, *names: str) -> int:
        """Instructions of the loop whose name begins with one of `names`; all of them without."""
        return sum(times for name, times in self.loop.items() if not names or name.startswith(names))


def compiled(launch: Launch, capability: int = HOPPER) -> MachineCode:
    """The machine code of exactly the kernel that `launch` would run on a GPU of this compute capability.

    Raises what Triton raises where the kernel does not compile.
    """
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    bind = create_function_from_signature(launch.kernel.signature, launch.kernel.params, backend)
    bound, specialization, _ = bind(**launch.arguments, **launch.options)
    options, signature, constants, attributes = launch.kernel._pack_args(
        backend, launch.options, bound, specialization, launch.options
    )
    source = ASTSource(launch.kernel, signature, constants, attributes)
    made = triton.compile(source, target=target, options=options.__dict__)
    return _read(made.asm["cubin"], made.metadata.shared)


def _read(cubin: bytes, shared_bytes: int) -> MachineCode:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        resources = _RESOURCES.search(_run("cuobjdump", "-res-usage", file.name))
        text = _run("nvdisasm", "-c", file.name)
    assert resources is not None, "cuobjdump names no registers"
    registers, stack = map(int, resources.groups())
    return MachineCode(registers, stack, shared_bytes, dict(longest_loop(text)))


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def longest_loop(text: str) -> collections.Counter[str]:
    """The instructions of the longest loop of a disassembly that has no other loop inside."""
    return collections.Counter()
