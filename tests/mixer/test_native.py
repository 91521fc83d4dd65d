"""Which implementation serves: said once, overridden by the environment, never silently the slow one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from scanlab import mixer
from scanlab.errors import ConfigError, UnavailableError
from scanlab.mixer import native as serving


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """A process that has not chosen yet, and afterwards again."""
    serving.implementation.cache_clear()
    yield
    serving.implementation.cache_clear()


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """A machine without compiler and cached library."""
    monkeypatch.setenv("SCANLAB_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.delenv("SCANLAB_MIXER", raising=False)
    monkeypatch.setattr(serving, "extension", replace(serving.extension, name="mixer_nowhere"))


@pytest.mark.usefixtures("native")
def test_native_serves_where_it_can(monkeypatch, caplog) -> None:
    monkeypatch.delenv("SCANLAB_MIXER", raising=False)
    caplog.set_level(logging.INFO, logger="scanlab")
    assert mixer.implementation() == mixer.implementation() == "native"
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert serving.serves(torch.ones(1))
    assert not serving.serves(torch.ones(1, device="meta"))


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_pytorch_serves_and_a_warning_says_why(caplog) -> None:
    x, weight = torch.randn(1, 3, 5), torch.randn(3, 2)
    for _ in range(2):
        torch.testing.assert_close(mixer.causal_conv1d(x, weight), mixer.causal_conv1d_reference(x, weight))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "no-such-compiler" in record.getMessage()


@pytest.mark.usefixtures("no_compiler")
def test_native_asked_for_and_not_to_be_had_is_an_error(monkeypatch) -> None:
    monkeypatch.setenv("SCANLAB_MIXER", "native")
    with pytest.raises(UnavailableError, match="no-such-compiler"):
        mixer.add_norm(torch.ones(2), None, torch.ones(2))


def test_torch_can_be_asked_for(monkeypatch) -> None:
    monkeypatch.setenv("SCANLAB_MIXER", "torch")
    assert mixer.implementation() == "torch"
    assert not serving.serves(torch.ones(1))


def test_an_unknown_choice_is_named(monkeypatch) -> None:
    monkeypatch.setenv("SCANLAB_MIXER", "cuda")
    with pytest.raises(ConfigError, match="SCANLAB_MIXER='cuda'"):
        mixer.implementation()


@pytest.mark.usefixtures("native")
def test_an_instruction_set_this_machine_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="sse1"):
        torch.ops.scanlab_mixer.use_instruction_set("sse1")
