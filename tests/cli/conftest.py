"""Commands are run in this process, with a profile and a cache of their own."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from scanlab.cli import main
from scanlab.runtime import dispatch


@dataclass(frozen=True)
class Outcome:
    """Output of a command, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run `scanlab` with these arguments in an empty folder; no tuned profile but what the test writes."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name in ("SCANLAB_BACKEND", "SCANLAB_STRICT", "SCANLAB_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    dispatch.clear()

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["scanlab", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        return Outcome(int(exit_.value.code or 0), printed.out, printed.err)

    handler = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, handler)
    dispatch.clear()
