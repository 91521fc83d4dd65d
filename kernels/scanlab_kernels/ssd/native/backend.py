"""The C++ kernel: products of small matrices, the heads of a task chunk by chunk, their states in the cache.

One build holds the kernel for every instruction set of the processor family and picks at run time. The environment
variable SCANLAB_ISA forces one (plain, avx2, avx512 or neon; amx counts as avx512 here); see `cpu/isa.py`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from scanlab.contract.backend import Backend, OpCapabilities
from scanlab.contract.cpu import pinned, threads_tunable
from scanlab.contract.space import Config, Space, Tunable
from scanlab_kernels.build import PACKAGE, THREADING, WARNINGS, Extension, Unit, headers
from scanlab_kernels.cpu.isa import INSTRUCTION_SETS, chosen_isa, isa_index
from scanlab_kernels.cpu.registration import direct
from scanlab_kernels.ssd.native import ops
from scanlab_kernels.ssd.problem import SsdFn, SsdInputs, SsdOutput, SsdProblem

FOLDER = Path(__file__).parent

extension = Extension(
    name="ssd",
    units=(
        *(Unit(FOLDER / "kernels.cpp", isa.flags) for isa in reversed(INSTRUCTION_SETS)),
        Unit(FOLDER / "native.cpp", ("-O1",)),
    ),
    flags=("-O3", *WARNINGS, "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", *THREADING),
    link_flags=THREADING,
    register=ops.register,
    stable_abi=True,
)


def make(problem: SsdProblem, config: Config) -> SsdFn:
    """Return the compiled op; compile it on the first use on a machine."""
    extension.load()
    forward = direct(torch.ops.scanlab_ssd.forward.default)
    settings = (
        problem.dt_softplus,
        *problem.limits,
        config["chunk"],
        config["task_heads"],
        isa_index(chosen_isa()),
    )

    def ssd(inputs: SsdInputs) -> SsdOutput:
        records = torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in inputs)
        out, final_state, *_ = forward(*inputs, *settings, records)
        return SsdOutput(out, final_state)

    return pinned(ssd, int(config["threads"]))


backend = Backend(
    name="ssd_native",
    summary="C++: small products in registers, chunk by chunk, the states of some heads in the cache",
    rank=4,
    sources=(
        Path(__file__),
        Path(ops.__file__),
        *headers(FOLDER),
        *headers(PACKAGE / "cpu"),
        *dict.fromkeys(unit.source for unit in extension.units),
    ),
    space=Space(
        (
            Tunable("chunk", (16, 32, 48, 64, 96, 128, 192, 256), default=64, summary="time steps of a chunk"),
            Tunable("task_heads", (1, 2, 4, 8, 16), default=4, summary="heads that one thread takes at a time"),
            threads_tunable(),
        )
    ),
    capabilities=OpCapabilities(dtypes=("float32", "bfloat16", "float16"), gradients=True),
    make=make,
    unavailable=extension.unavailable,
    op="ssd",
)
