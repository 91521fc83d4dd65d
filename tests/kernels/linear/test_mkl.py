"""A weight that MKL reads is kept packed for one number of rows, and the product is right for any."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scanlab_kernels.linear import mkl
from scanlab_kernels.linear.weights import PrepackedWeight

pytestmark = pytest.mark.skipif(mkl.unavailable() is not None, reason="this torch has no MKL product")


def test_memory_does_not_grow_with_the_numbers_of_rows() -> None:
    weight = PrepackedWeight(torch.randn(24, 40))
    sizes = []
    with torch.inference_mode():
        for rows in (*range(1, 30), 7, 7, 7, *range(1, 30)):
            x = torch.randn(rows, 40)
            torch.testing.assert_close(mkl.linear(x, weight, None), F.linear(x, weight.weight))
            sizes.append(weight.prepacked_bytes)
    assert max(sizes) < 3 * sizes[0]


def test_a_number_of_rows_that_comes_twice_is_packed_for() -> None:
    weight = PrepackedWeight(torch.randn(24, 40))
    made: list[int] = []

    def make(plain: torch.Tensor) -> torch.Tensor:
        made.append(1)
        return plain.clone()

    first = weight.latest_form(5, make)
    assert first is not None
    assert weight.latest_form(5, make) is first
    assert weight.latest_form(6, make) is None
    assert weight.latest_form(5, make) is first
    assert weight.latest_form(6, make) is None
    second = weight.latest_form(6, make)
    assert second is not None
    assert second is not first
    assert weight.latest_form(5, make) is None
    assert len(made) == 2
