"""Launches of GPU kernels, with functions in the place of kernels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scanlab.errors import RejectedError
from scanlab_kernels.gpu.launch_cache import Launch, kind_of, launch


class Kernel:
    """A kernel that writes down how it is called: first through Triton, then as it was compiled."""

    arg_names = ("x", "n")
    fn = SimpleNamespace(__module__="kernels", __name__="double")

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.inspected: list[Any] = []
        self.launched: list[Any] = []

    def __getitem__(self, grid):
        def inspect(x, **named):
            if self.error is not None:
                raise self.error
            self.inspected.append((grid, x, named))
            return {(*grid, 1, 1): lambda *arguments: self.launched.append(arguments)}

        return inspect


def test_triton_inspects_the_arguments_of_a_kind_once():
    pytest.importorskip("triton", reason="the package triton is not installed")
    kernel, made = Kernel(), []
    numbers = {"n": 3}

    def make():
        made.append(Launch(kernel, 2, numbers, warps=4))
        return made[-1]

    tensors = [torch.ones(3), torch.zeros(3), torch.ones(4)]
    for x in tensors:
        launch((x,), "double", make)
    assert len(made) == 2
    options = {"num_warps": 4, "enable_fp_fusion": True}
    assert [each[0] for each in kernel.inspected] == [(2,), (2,)]
    assert [each[2] for each in kernel.inspected] == [numbers | options] * 2
    ((second, n),) = kernel.launched
    assert second is tensors[1]
    assert n == 3


def test_nothing_is_launched_for_no_programs():
    kernel = Kernel()
    Launch(kernel, 0, {"n": 3})(torch.ones(0))
    assert kernel.inspected == kernel.launched == []


def test_an_error_of_a_launch_names_the_kernel_and_a_cure():
    pytest.importorskip("triton", reason="the package triton is not installed")
    kernel = Kernel(RuntimeError("Triton Error [CUDA]: out of memory"))
    with pytest.raises(RejectedError, match=r"kernels\.double cannot be launched .*out of memory; choose another"):
        Launch(kernel, 1, {"n": 3})(torch.ones(1))


def test_tensors_are_of_one_kind_where_shape_strides_dtype_and_alignment_are():
    x = torch.zeros(8, 8)
    assert kind_of((x, None, (x, 2))) == kind_of((torch.ones(8, 8), None, (x, 2)))
    for other in (x.mT, x[:4], x.double(), torch.zeros(65)[1:].view(8, 8)):
        assert kind_of(other) != kind_of(x)
