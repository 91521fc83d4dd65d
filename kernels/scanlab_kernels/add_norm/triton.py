# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
"""Residual add with RMSNorm or LayerNorm on a GPU: a row in the registers of one program, read and written once.

On the way back a program walks through a run of rows and keeps its share of the gradients of weight and bias; torch
adds the shares up, always in the same order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scanlab.errors import ProblemError
from scanlab_kernels.gpu.launch_cache import Launch
from scanlab_kernels.gpu.math import load

LARGEST = 2**15  # numbers of a row, which has to fit into registers
RUNS, FEWEST_ROWS = 2048, 8  # at most so many programs on the way back, of at least so many rows


@triton.jit
def normalised(total, mask, dim, eps, CENTRED: tl.constexpr):
    """A row without its mean, where it is CENTRED, and the factor that makes its mean square 1."""
    if CENTRED:
        total = tl.where(mask, total - tl.sum(total, axis=0) / dim, 0.0)
    return total, tl.rsqrt(tl.sum(total * total, axis=0) / dim + eps)


@triton.jit
def forward_kernel(
    hidden,
    residual,
    weight,
    bias,
    out,
    total,
    hidden_row,
    residual_row,
    dim,
    eps,
    CENTRED: tl.constexpr,
    PADDED: tl.constexpr,
):
    """One row: its sum, and that normalised."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, PADDED)
    mask = column < dim
    values = load(hidden + row * hidden_row + column, mask)
    if residual is not None:
        values += load(residual + row * residual_row + column, mask)
    tl.store(total + row * dim + column, values.to(total.dtype.element_ty), mask=mask)
    centred, scale = normalised(values, mask, dim, eps, CENTRED)
    result = centred * scale * load(weight + column, mask)
    if bias is not None:
        result += load(bias + column, mask)
    tl.store(out + row * dim + column, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    grad_out,
    grad_total,
    total,
    weight,
    grad,
    sums,
    out_row,
    total_row,
    rows,
    run,
    dim,
    eps,
    CENTRED: tl.constexpr,
    PADDED: tl.constexpr,
):
    """The gradients of a run of rows, and its share of those of weight and bias.

    sums  (runs, 2, dim)
    """
    place = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, PADDED)
    mask = column < dim
    factor = load(weight + column, mask)
    by_weight = tl.zeros([PADDED], tl.float32)
    by_bias = tl.zeros([PADDED], tl.float32)
    for row in tl.range(place * run, tl.minimum(place * run + run, rows)):
        centred, scale = normalised(load(total + row * dim + column, mask), mask, dim, eps, CENTRED)
        unit = centred * scale
        g = load(grad_out + row * out_row + column, mask)
        by_weight += g * unit
        by_bias += g
        inner = g * factor
        along = tl.sum(inner * unit, axis=0) / dim
        if CENTRED:
            result = scale * (inner - tl.sum(inner, axis=0) / dim - unit * along)
        else:
            result = scale * (inner - unit * along)
        if grad_total is not None:
            result += load(grad_total + row * total_row + column, mask)
        tl.store(grad + row * dim + column, result.to(grad.dtype.element_ty), mask=mask)
    tl.store(sums + place * 2 * dim + column, by_weight, mask=mask)
    tl.store(sums + place * 2 * dim + dim + column, by_bias, mask=mask)


def rows_of(tensor: Tensor) -> Tensor:
    """`tensor` as (rows, dim) with dense rows: a copy only where it has to be."""
    flat = tensor.reshape(-1, tensor.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()


def forward(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    out: Tensor,
    total: Tensor,
) -> Launch:
    """The launch that writes `out` and `total`, which are dense; raises ProblemError where a row is too long."""
    rows = rows_of(hidden)
    others = None if residual is None else rows_of(residual)
    tensors = {
        "hidden": rows,
        "residual": others,
        "weight": weight.contiguous(),
        "bias": None if bias is None else bias.contiguous(),
        "out": out,
        "total": total,
    }
    numbers = {
        "hidden_row": rows.stride(0),
        "residual_row": 0 if others is None else others.stride(0),
        "dim": rows.shape[1],
        "eps": eps,
        "CENTRED": centred,
        "PADDED": _padded(rows.shape[1]),
    }
    return Launch(forward_kernel, len(rows), tensors, numbers, {"num_warps": _warps(rows.shape[1])})


def backward(
    grad_out: Tensor, grad_total: Tensor | None, total: Tensor, weight: Tensor, eps: float, centred: bool, grad: Tensor
) -> tuple[Launch, Tensor]:
    """The launch that writes `grad`, the gradient of `total`, both dense, and the sums that it writes."""
    outer = rows_of(grad_out)
    direct = None if grad_total is None else rows_of(grad_total)
    count, dim = outer.shape
    run = max(FEWEST_ROWS, -(-count // RUNS))
    runs = -(-count // run)
    sums = total.new_empty((runs, 2, dim), dtype=torch.float32)
    tensors = {
        "grad_out": outer,
        "grad_total": direct,
        "total": total.contiguous(),
        "weight": weight.contiguous(),
        "grad": grad,
        "sums": sums,
    }
    numbers = {
        "out_row": outer.stride(0),
        "total_row": 0 if direct is None else direct.stride(0),
        "rows": count,
        "run": run,
        "dim": dim,
        "eps": eps,
        "CENTRED": centred,
        "PADDED": _padded(dim),
    }
    return Launch(backward_kernel, runs, tensors, numbers, {"num_warps": _warps(dim)}), sums


def _padded(dim: int) -> int:
    if dim > LARGEST:
        raise ProblemError(
            f"dim is {dim}: at most {LARGEST} on a GPU; call inside scanlab.runtime.ops.in_torch() beyond."
        )
    padded: int = triton.next_power_of_2(dim)
    return padded


def _warps(dim: int) -> int:
    return min(16, max(1, _padded(dim) // 256))
