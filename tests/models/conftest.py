"""Models in tests are small: one thread is faster than two that wait for each other."""

from collections.abc import Iterator

import pytest

from scanlab.contract.cpu import torch_threads


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield
