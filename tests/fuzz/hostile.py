"""Arguments as they should not be: of another type, shape, dtype, layout or device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fuzz.case import Case, has_memory
from fuzz.draws import Draw

WRONG_DTYPES = (
    torch.int64,
    torch.int32,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float64,
    torch.bfloat16,
    torch.float16,
)


def corrupt(draw: Draw, case: Case) -> Case:
    """Make one to three arguments of a case wrong."""
    case.kind, case.differentiated = "hostile", ()
    for _ in range(draw.pick((1, 1, 1, 2, 3))):
        name = draw.pick(list(case.arguments))
        value = case.arguments[name]
        if isinstance(value, Tensor) and has_memory(value):
            how = draw.pick(list(CORRUPTIONS))
            case.arguments[name] = CORRUPTIONS[how](draw, value)
        else:
            how = "another value"
            case.arguments[name] = another_value(draw, value)
        case.note += f" {name} {how}"
    return case


def another_value(draw: Draw, value: object) -> object:
    """Return something else than an option, an index or a missing tensor."""
    if isinstance(value, bool):
        return not value
    if value is None:
        return draw.pick((torch.zeros(()), torch.zeros(3), torch.zeros(0), torch.zeros(2, 2, dtype=torch.int32)))
    if isinstance(value, str):
        return draw.pick(("", "gelu", "SiLU"))
    return value


def _resized(draw: Draw, tensor: Tensor) -> Tensor:
    if not tensor.dim():
        return tensor.expand(2)
    axis = draw.randrange(tensor.dim())
    size = tensor.shape[axis]
    change = draw.pick((-1, 1, 1, -size, size))
    if change < 0:
        return tensor.narrow(axis, 0, max(0, size + change))
    return torch.cat((tensor, tensor.narrow(axis, 0, min(size, change))), axis)


def _other_rank(draw: Draw, tensor: Tensor) -> Tensor:
    options: list[Callable[[], Tensor]] = [lambda: tensor[None], lambda: tensor[..., None], tensor.flatten]
    if tensor.dim() and tensor.shape[0]:
        options.append(lambda: tensor[0])
    if tensor.numel():
        options.append(lambda: tensor.flatten()[0])
    return draw.pick(options)()


def _swapped(draw: Draw, tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1) if tensor.dim() > 1 else tensor[None]


def _other_dtype(draw: Draw, tensor: Tensor) -> Tensor:
    dtype, real = draw.pick(WRONG_DTYPES), tensor.real if tensor.is_complex() else tensor
    return (real.abs() if dtype == torch.uint8 else real).to(dtype)  # not 254 for -2, of which states explode


def _sparse(draw: Draw, tensor: Tensor) -> Tensor:
    return tensor.to_sparse() if tensor.dim() and tensor.dtype.itemsize > 1 else tensor.to("meta")


def _quantized(draw: Draw, tensor: Tensor) -> Tensor:
    return torch.quantize_per_tensor(
        tensor.real.float() if tensor.is_complex() else tensor.float(), 0.1, 0, torch.qint8
    )


def _blocked(draw: Draw, tensor: Tensor) -> Tensor:
    fits = tensor.dtype == torch.float32 and 1 <= tensor.dim() <= 5 and tensor.numel()
    return tensor.to_mkldnn() if fits else tensor.to("meta")


def _huge(draw: Draw, tensor: Tensor) -> Tensor:
    axis = draw.randrange(tensor.dim()) if tensor.dim() else 0
    if not tensor.dim() or tensor.shape[axis] == 0:
        return tensor.to("meta")
    shape = [*tensor.shape]
    shape[axis] = 2**40
    return tensor.narrow(axis, 0, 1).expand(shape)


CORRUPTIONS: dict[str, Callable[[Draw, Tensor], Any]] = {
    "resized": _resized,
    "of other rank": _other_rank,
    "transposed": _swapped,
    "of other dtype": _other_dtype,
    "on meta": lambda draw, tensor: tensor.to("meta"),
    "sparse": _sparse,
    "quantized": _quantized,
    "in oneDNN's layout": _blocked,
    "huge": _huge,
    "an object": lambda draw, tensor: draw.pick((None, [1.0, 2.0], "text", 3, tensor.tolist())),
}
