"""Checks that every op makes of its tensors before it touches them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from scanlab.contract.base import expect_strided
from scanlab.errors import ProblemError

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def expect(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise ProblemError unless `tensor` is dense, floating, of this shape, and on the device of `like`."""
    if tensor.shape != shape:
        raise ProblemError(f"{name} is {tuple(tensor.shape)}: must be {shape}, as the other tensors are shaped.")
    if tensor.dtype not in FLOATING:
        raise ProblemError(f"{name} is {tensor.dtype}: must be float32, float64, bfloat16 or float16.")
    if tensor.layout != torch.strided:
        raise ProblemError(f"{name} has the layout {tensor.layout}: must be dense, such as {name}.to_dense().")
    if tensor.device != like.device:
        raise ProblemError(f"{name} is on {tensor.device}, others on {like.device}: move them to one device.")


def expect_int32(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise ProblemError unless `tensor` is int32, of this shape, and on the device of `like`."""
    if tensor.shape != shape or tensor.dtype != torch.int32 or tensor.device != like.device:
        raise ProblemError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}:"
            f" must be int32 {shape} on {like.device}."
        )


def expect_one_device(**tensors: Tensor | None) -> None:
    """Raise ProblemError unless all tensors that are there are on one device; some products of torch take others."""
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    for name, device in devices.items():
        first, where = next(iter(devices.items()))
        if device != where:
            raise ProblemError(f"{name} is on {device}, {first} on {where}: move them to one device.")


def expect_real(**tensors: Tensor | None) -> None:
    """Raise ProblemError for a complex tensor, which a cast would cut to its real part."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.is_complex():
            raise ProblemError(f"{name} is {tensor.dtype}: must be real numbers.")


def wide(tensor: Tensor) -> Tensor:
    """Return `tensor` in the dtype that the ops compute in: float64 stays, all others become float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def expect_like(inputs: NamedTuple, like: Tensor, expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    """Raise ProblemError unless the tensors of `inputs` that are there are dense and have these shapes and dtypes.

    Args:
        inputs: NamedTuple of tensors.
        like: The tensor whose device all others must be on.
        expected: Shape and dtype by name.
    """
    expect_strided(inputs)
    for name, (shape, dtype) in expected.items():
        tensor = getattr(inputs, name)
        if tensor is not None and (tensor.shape != shape or tensor.dtype != dtype or tensor.device != like.device):
            raise ProblemError(
                f"{name} is {spell(tensor)}: must be {str(dtype).removeprefix('torch.')} {shape} on {like.device}."
            )


def spell(tensor: Tensor) -> str:
    """Return dtype, shape and device of a tensor, as errors name them."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} on {tensor.device}"
