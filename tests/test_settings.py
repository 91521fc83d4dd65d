"""The documented environment variables are the ones that the code reads, and nobody else reads them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scanlab import settings
from scanlab.errors import ConfigError

ROOT = Path(__file__).parents[1]
PRODUCT = [*ROOT.glob("scanlab/**/*.py"), *ROOT.glob("kernels/scanlab_kernels/**/*.py")]
# Macros of the C++ sources, which have the same prefix.
MACROS = {"SCANLAB_HAS_", "SCANLAB_TARGET", "SCANLAB_TARGET_NEEDS", "SCANLAB_NEON"}


def test_the_documented_names_are_those_in_the_code() -> None:
    texts = [path.read_text() for path in PRODUCT]
    named = {name for text in texts for name in re.findall(r"\bSCANLAB_[A-Z_]+\b", text)}
    assert named - MACROS == {each.name for each in settings.ALL}


def test_no_other_file_reads_them() -> None:
    readers = [path for path in PRODUCT if re.search(r"environ(\.get\()?\W+SCANLAB_", path.read_text())]
    assert not readers


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANLAB_STRICT", "1")
    assert settings.strict()
    monkeypatch.setenv("SCANLAB_STRICT", "")
    assert settings.STRICT.get() is None
    assert not settings.strict()


def test_strict_takes_0_and_1_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANLAB_STRICT", "0")
    assert not settings.strict()
    monkeypatch.setenv("SCANLAB_STRICT", "maybe")
    with pytest.raises(ConfigError, match="SCANLAB_STRICT=maybe: must be 0 or 1"):
        settings.strict()


def test_every_setting_says_what_it_means() -> None:
    for each in settings.ALL:
        assert each.meaning
        assert each.default


def test_no_macro_of_the_kernels_has_the_name_of_a_setting() -> None:
    sources = [path for suffix in ("h", "cpp") for path in ROOT.glob(f"kernels/scanlab_kernels/**/*.{suffix}")]
    named = {name for path in sources for name in re.findall(r"\bSCANLAB_[A-Z_]+\b", path.read_text())}
    assert not named & {each.name for each in settings.ALL}
