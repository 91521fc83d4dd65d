"""Checks that every op makes of its tensors before it touches them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from scanlab.contract.base import expect_strided
from scanlab.errors import ProblemError

OptionalTensor = TypeVar("OptionalTensor", Tensor, Tensor | None)

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


def expect_dense_real(**tensors: Tensor | None) -> None:
    """Raise ProblemError for tensors that are complex, which a cast would cut, or sparse, which torch broadcasts."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.is_complex():
            raise ProblemError(f"{name} is {tensor.dtype}: must be real numbers.")
        if tensor is not None and tensor.layout != torch.strided:
            raise ProblemError(f"{name} has the layout {tensor.layout}: must be dense, such as {name}.to_dense().")


def expect_projection(name: str, weight: Tensor) -> None:
    """Raise ProblemError unless the weight of a linear layer has two axes: torch projects by a vector, too."""
    if weight.dim() != 2:
        raise ProblemError(f"{name} is {tuple(weight.shape)}: must be (features, dim).")


def expect_place(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtypes: torch.dtype | tuple[torch.dtype, ...],
    device: torch.device,
) -> None:
    """Raise ProblemError unless torch can write results of this shape into `tensor`, and all of them are kept.

    Args:
        name: Name of the tensor, for the error.
        tensor: The tensor that is to be written to.
        shape: Its shape; nothing is broadcast.
        dtypes: What its dtype may be.
        device: Where it must be.
    """
    legal = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    if tensor.shape != shape or tensor.dtype not in legal or tensor.device != device:
        spelled = " or ".join(str(each).removeprefix("torch.") for each in dict.fromkeys(legal))
        raise ProblemError(f"{name} is {spell(tensor)}: must be {spelled} {tuple(shape)} on {device}.")
    expect_no_overlap(name, tensor)
    if _has_no_memory():
        return
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise ProblemError(f"{name} was made in inference mode: write to it there, or pass {name}.clone().")
    owner = tensor if tensor._base is None else tensor._base
    if torch.is_grad_enabled() and owner.requires_grad and owner.is_leaf:
        raise ProblemError(f"{name} requires gradients, and is written to: pass {name}.detach().")


def expect_no_overlap(name: str, tensor: Tensor) -> None:
    """Raise ProblemError unless `tensor` is dense, and each axis steps over all that the narrower ones reach."""
    if tensor.layout != torch.strided:
        raise ProblemError(f"{name} has the layout {tensor.layout}: must be dense, such as {name}.to_dense().")
    if tensor.is_contiguous() or _has_no_memory() or not tensor.numel():
        return
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            raise ProblemError(
                f"{name} has sizes {tuple(tensor.shape)} and strides {tensor.stride()}: elements of it overlap;"
                " pass a contiguous tensor."
            )
        reach += (size - 1) * stride


def expect_apart(**tensors: Tensor | None) -> None:
    """Raise ProblemError where two of the tensors that are there have an element in the same memory.

    None of them may overlap itself. Tensors without memory of their own, as those of a graph that is traced, pass.
    """
    present = [(name, each) for name, each in tensors.items() if each is not None]
    if _has_no_memory() or any(type(each) not in (Tensor, nn.Parameter) for _, each in present):
        return
    for (name, tensor), (other_name, other) in itertools.combinations(present, 2):
        if tensor.device == other.device and not tensor.is_meta and _share_memory(tensor, other):
            raise ProblemError(f"{name} and {other_name} overlap: give each memory of its own.")


def expect_distinct(name: str, rows: Tensor) -> None:
    """Raise ProblemError where two sequences have the same row of a state, unless a GPU would have to be waited for."""
    if rows.is_cpu and not _has_no_memory() and type(rows) is Tensor and len(rows.unique()) < len(rows):
        raise ProblemError(f"{name} names a row of the state twice: give each sequence its own row, and -1 to padding.")


def apart_from(state: Tensor, tensor: OptionalTensor) -> OptionalTensor:
    """Return a tensor that is read while `state` is written: a copy of it where their memory may overlap.

    Tensors of different storages are taken to be apart, which is quick to see.
    """
    if tensor is None or _has_no_memory() or any(type(each) not in (Tensor, nn.Parameter) for each in (state, tensor)):
        return tensor
    same = tensor.untyped_storage().data_ptr() == state.untyped_storage().data_ptr()
    return tensor.clone() if same and _spans_meet(state, tensor) else tensor


def expect_states(
    conv_state: Tensor, ssm_state: Tensor, conv_shape: tuple[int, ...], ssm_shape: tuple[int, ...], like: Tensor
) -> None:
    """Raise ProblemError unless both states can be updated, so that neither is where the other cannot be.

    Args:
        conv_state: The last inputs of the convolution, with any number of slots.
        ssm_state: The state of the scan.
        conv_shape: Shape of conv_state without its slots.
        ssm_shape: Shape of ssm_state.
        like: A tensor on the device where they must be.
    """
    expect("conv_state", conv_state, (*conv_shape, *conv_state.shape[-1:]), like)
    expect("ssm_state", ssm_state, ssm_shape, like)
    expect_no_overlap("conv_state", conv_state)
    expect_no_overlap("ssm_state", ssm_state)
    expect_apart(conv_state=conv_state, ssm_state=ssm_state)


def _has_no_memory() -> bool:
    """Return whether tensors have no memory to speak of: torch builds a graph, or transforms the running code."""
    return torch.compiler.is_compiling() or torch._C._is_tracing() or torch._C._are_functorch_transforms_active()


def _share_memory(a: Tensor, b: Tensor) -> bool:
    """Return whether an element of one tensor lies in one of the other, neither of which overlaps itself."""
    if not _spans_meet(a, b):
        return False
    start, other_start = a.data_ptr(), b.data_ptr()
    step, other_step = (each.stride(0) * each.itemsize if each.dim() else 0 for each in (a, b))
    if step == other_step > 0:  # rows that alternate, as in a buffer with a row for each sequence
        offset = (other_start - start) % step
        if _reach(a[0]) <= offset <= step - _reach(b[0]):
            return False
    first = min(start, other_start)
    touched = torch.zeros(max(start + _reach(a), other_start + _reach(b)) - first, dtype=torch.bool)
    for each in (a, b):
        shape, strides = (*each.shape, each.itemsize), (*[each.itemsize * by for by in each.stride()], 1)
        touched.as_strided(shape, strides, each.data_ptr() - first).fill_(True)
    return int(touched.sum()) < a.nbytes + b.nbytes


def _spans_meet(a: Tensor, b: Tensor) -> bool:
    """Return whether the memory from the first to the last element of one tensor meets that of the other."""
    if not (a.numel() and b.numel()):
        return False
    return a.data_ptr() < b.data_ptr() + _reach(b) and b.data_ptr() < a.data_ptr() + _reach(a)


def _reach(tensor: Tensor) -> int:
    """Return the bytes from the first element of `tensor`, which has one, to the end of its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.itemsize


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
