"""The ops of a Mamba block except its scan, in C++, for CPU tensors; SCANLAB_ISA forces an instruction set."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch

from scanlab import settings
from scanlab.contract.forks import has_forked
from scanlab.errors import ConfigError
from scanlab_kernels import flop_formulas
from scanlab_kernels.add_norm import registration as add_norm
from scanlab_kernels.build import PACKAGE, THREADING, WARNINGS, Extension, Unit
from scanlab_kernels.causal_conv1d import registration as causal_conv1d
from scanlab_kernels.cpu.isa import AMX, BFLOAT16, FAMILY, INSTRUCTION_SETS, chosen_isa, isa_index, may_take_tiles
from scanlab_kernels.cpu.registration import direct_ops
from scanlab_kernels.linear import registration as linear
from scanlab_kernels.mamba_blocks import registration as mamba_blocks
from scanlab_kernels.mamba_front import registration as mamba_front
from scanlab_kernels.state_update import registration as state_update

log = logging.getLogger("scanlab")

FOLDER = Path(__file__).parent
# The ops on torch's tensors, which only check them and describe them to the kernels: optimising that gains nothing.
OPS = (
    PACKAGE / "linear" / "native.cpp",
    PACKAGE / "mamba_front" / "native.cpp",
    PACKAGE / "mamba_blocks" / "native.cpp",
    PACKAGE / "causal_conv1d" / "native.cpp",
    PACKAGE / "add_norm" / "native.cpp",
    PACKAGE / "state_update" / "native.cpp",
    PACKAGE / "state_update" / "mixer_step.cpp",
    FOLDER / "library.cpp",
)

# The ops by their names, for eager calls with little overhead; empty before they are loaded.
ops = SimpleNamespace()


def unavailable() -> str | None:
    """Return why the native ops can neither be built here nor are they cached, or None."""
    return extension.unavailable()


def is_loaded() -> bool:
    """Return whether `load` has succeeded in this process."""
    return bool(vars(ops))


def use_isa(name: str) -> None:
    """Let the ops run on this instruction set; with `amx`, products in bfloat16 use AMX and all else AVX-512.

    Raises:
        ValueError: There is none of that name, or this machine lacks it.
    """
    torch.ops.scanlab_mixer.use_instruction_set(isa_index(name), name == AMX.name)


def load() -> str:
    """Load the native ops, built if need be, and return their name with the instruction set that they run on.

    Raises:
        UnavailableError: They can neither be built nor are they cached.
        ConfigError: SCANLAB_ISA has an illegal value, or names AMX, which the system does not grant.
    """
    with _untraced():
        return _loaded_on()


@contextmanager
def _untraced() -> Iterator[None]:
    """Keep the calls of a block out of the graph that torch.jit.trace is building."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def _loaded_on() -> str:
    extension.load()
    isa = chosen_isa()
    if may_take_tiles():
        if torch.ops.scanlab_mixer.has_tiles():
            isa = AMX.name
        elif settings.ISA.get() == AMX.name:
            raise ConfigError(f"{settings.ISA.name}={AMX.name}: the system does not grant the registers; unset it.")
        else:
            log.info("the system does not grant AMX, which the CPU has: products in bfloat16 run on %s", isa)
    use_isa(isa)
    return f"native C++ ({isa})"


def _register() -> None:
    if has_forked():
        torch.ops.scanlab_mixer.note_fork()
    for each in (add_norm, causal_conv1d, linear, mamba_blocks, mamba_front, state_update):
        each.register()
    flop_formulas.count("scanlab_mixer")
    vars(ops).update(direct_ops("scanlab_mixer"))


extension = Extension(
    name="mixer",
    units=(
        *(Unit(FOLDER / "kernels.cpp", isa.flags) for isa in reversed(INSTRUCTION_SETS)),
        *(Unit(PACKAGE / "linear" / "bfloat16.cpp", isa.flags) for isa in BFLOAT16.get(FAMILY, ())),
        *(Unit(source, ("-O2",)) for source in OPS),
    ),
    flags=("-O3", *WARNINGS, "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", *THREADING),
    link_flags=THREADING,
    register=_register,
    stable_abi=True,
)
