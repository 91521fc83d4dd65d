"""Models in tests are small: one thread is faster than two that wait for each other."""

from collections.abc import Iterator

import pytest

from scanlab.contract.cpu import torch_threads
from scanlab.integrations import mamba_ssm as drop_in


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


@pytest.fixture(autouse=True)
def no_drop_in() -> Iterator[None]:
    """Take out the drop-in that models of a user are imported with."""
    yield
    drop_in.uninstall()
