"""The C++ core of the native scan by itself: under sanitizers, and its functions within their bounds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scanlab_kernels.cpu.isa import supported_isas

VERIFY = Path(__file__).parent / "native_core" / "verify.py"
MISSING = 3


def verify(*words: str) -> subprocess.CompletedProcess[str]:
    """Return the finished script; skip the test where something that it needs is missing."""
    result = subprocess.run([sys.executable, str(VERIFY), *words], capture_output=True, text=True)
    if result.returncode == MISSING:
        pytest.skip(result.stderr.strip().splitlines()[0])
    return result


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "real"), [("address", "float"), ("thread", "double")])
def test_sanitizers_find_nothing(mode: str, real: str) -> None:
    asked = ("--only", supported_isas()[-1], "--type", real, "--cases", "60", "--step", "9973")
    result = verify(mode, *asked)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert "60 cases" in result.stdout
