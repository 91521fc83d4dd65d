"""The instruction sets: one list for compiler, Python and C++, and sources that compile without warnings."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from scanlab.contract.compiler import find_compiler
from scanlab.errors import ConfigError
from scanlab_kernels.build import PACKAGE
from scanlab_kernels.cpu.extension import extension
from scanlab_kernels.cpu.isa import INSTRUCTION_SETS, chosen_isa, isa_index, supported_isas
from scanlab_kernels.selective_scan.native import backend as native


@pytest.mark.usefixtures("native")
def test_python_and_cpp_agree_on_what_this_machine_has() -> None:
    bits = torch.ops.scanlab_mixer.instruction_sets()
    assert tuple(isa.name for isa in INSTRUCTION_SETS if bits >> isa_index(isa.name) & 1) == supported_isas()
    assert [isa_index(isa.name) for isa in INSTRUCTION_SETS] == list(range(len(INSTRUCTION_SETS)))


def test_an_instruction_set_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANLAB_ISA", "mmx")
    with pytest.raises(ConfigError, match="SCANLAB_ISA='mmx'"):
        chosen_isa()


@pytest.mark.slow
@pytest.mark.parametrize("library", [extension, native.extension], ids=lambda library: library.name)
def test_sources_compile_without_warnings(library) -> None:
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    torch_include = Path(torch.__file__).parent / "include"
    includes = (
        "-I",
        str(PACKAGE),
        "-isystem",
        str(torch_include),
        "-isystem",
        str(torch_include / "torch/csrc/api/include"),
    )
    # One unit of each source: native_core/verify.py compiles for every instruction set, with the same warnings.
    for unit in {unit.source: unit for unit in library.units}.values():
        words = (*compiler.command, "-std=c++20", *includes, *library.flags, *unit.flags, "-Werror", "-fsyntax-only")
        result = subprocess.run([*words, str(unit.source)], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
