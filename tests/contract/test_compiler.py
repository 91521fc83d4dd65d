"""The C++ compiler of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from scanlab.contract.compiler import find_compiler
from scanlab.contract.machine import this_machine


@pytest.mark.parametrize("words", ["env g++", "g++"])
def test_a_compiler_named_by_several_words_is_found(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setenv("CXX", words)
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("there is no g++")
    assert Path(compiler.command[0]).name == words.split()[0]
    assert compiler.command[1:] == tuple(words.split()[1:])


@pytest.mark.parametrize("words", ['g++ "', "false", "/", "no-such-compiler"])
def test_what_is_no_compiler_is_none(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setenv("CXX", words)
    assert find_compiler() is None


def test_no_compiler_is_none_and_records_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_compiler() is None
    assert this_machine.__wrapped__().software.compiler == "none"
