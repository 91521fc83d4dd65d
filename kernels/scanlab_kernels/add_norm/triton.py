# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
"""Triton kernels of the residual add with RMSNorm or LayerNorm: a program holds a row in registers.

A program of the backward kernel walks through a run of rows and keeps its share of the gradients of weight and bias;
torch adds the shares, always in the same order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scanlab.errors import ProblemError
from scanlab_kernels.add_norm.registration import empty_gradients, empty_outputs, gradients, keep_total
from scanlab_kernels.gpu.launch_cache import Launch, launch
from scanlab_kernels.gpu.math import load
from scanlab_kernels.gpu.registration import NO_SECOND_DERIVATIVES, define

MAX_DIM = 2**15  # a row has to fit into the registers of a program
MAX_RUNS, MIN_ROWS = 2048, 8  # programs of the backward kernel at most, and rows of one at least


@triton.jit
def normalise(total, mask, dim, eps, CENTRED: tl.constexpr):
    """Return a row, without its mean where CENTRED, and the factor that makes its mean square 1."""
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
    """Compute one row: the sum, and the normalised sum."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, PADDED)
    mask = column < dim
    values = load(hidden + row * hidden_row + column, mask)
    if residual is not None:
        values += load(residual + row * residual_row + column, mask)
    tl.store(total + row * dim + column, values.to(total.dtype.element_ty), mask=mask)
    centred, scale = normalise(values, mask, dim, eps, CENTRED)
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
    """Compute the gradients of a run of rows, and write its share of those of weight and bias to `sums`.

    sums: (runs, 2, dim).
    """
    place = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, PADDED)
    mask = column < dim
    factor = load(weight + column, mask)
    grad_weight = tl.zeros([PADDED], tl.float32)
    grad_bias = tl.zeros([PADDED], tl.float32)
    for row in tl.range(place * run, tl.minimum(place * run + run, rows)):
        centred, scale = normalise(load(total + row * dim + column, mask), mask, dim, eps, CENTRED)
        unit = centred * scale
        g = load(grad_out + row * out_row + column, mask)
        grad_weight += g * unit
        grad_bias += g
        inner = g * factor
        along = tl.sum(inner * unit, axis=0) / dim
        if CENTRED:
            result = scale * (inner - tl.sum(inner, axis=0) / dim - unit * along)
        else:
            result = scale * (inner - unit * along)
        if grad_total is not None:
            result += load(grad_total + row * total_row + column, mask)
        tl.store(grad + row * dim + column, result.to(grad.dtype.element_ty), mask=mask)
    tl.store(sums + place * 2 * dim + column, grad_weight, mask=mask)
    tl.store(sums + place * 2 * dim + dim + column, grad_bias, mask=mask)


def dense_rows(tensor: Tensor) -> Tensor:
    """Return `tensor`, or where its rows do not follow each other at one stride a view or copy (rows, dim)."""
    if tensor.is_contiguous():
        return tensor
    flat = tensor.reshape(-1, tensor.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()


def row_stride(rows: Tensor | None) -> int:
    """Return the stride between the rows of a result of `dense_rows`."""
    if rows is None:
        return 0
    return rows.shape[-1] if rows.is_contiguous() else rows.stride(0)


def add_norm(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    wide_total: bool,
) -> tuple[Tensor, Tensor]:
    """Return the normalised sum of hidden and residual, and the sum.

    Raises:
        ProblemError: A row is too long.
    """
    out, total = empty_outputs(hidden, residual, weight, bias, eps, centred, wide_total)
    rows = dense_rows(hidden)
    residual_rows = None if residual is None else dense_rows(residual)

    def make() -> Launch:
        numbers = {
            "hidden_row": row_stride(rows),
            "residual_row": row_stride(residual_rows),
            "dim": rows.shape[-1],
            "eps": eps,
            "CENTRED": centred,
            "PADDED": _padded(rows.shape[-1]),
        }
        return Launch(forward_kernel, rows.numel() // rows.shape[-1], numbers, warps=_warps(rows.shape[-1]))

    if out.numel():
        dense_bias = None if bias is None else bias.contiguous()
        launch((rows, residual_rows, weight.contiguous(), dense_bias, out, total), ("add_norm", eps, centred), make)
    return out, total


def add_norm_backward(
    grad_out: Tensor, grad_total: Tensor | None, total: Tensor, weight: Tensor, eps: float, centred: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the sum, and, in float32, of the weight and of a bias."""
    grad, grad_weight, grad_bias = empty_gradients(grad_out, grad_total, total, weight, eps, centred)
    if not total.numel():
        return grad, grad_weight.zero_(), grad_bias.zero_()
    dim = total.shape[-1]
    rows = total.numel() // dim
    run = max(MIN_ROWS, -(-rows // MAX_RUNS))
    runs = -(-rows // run)
    sums = total.new_empty((runs, 2, dim), dtype=torch.float32)
    outer = dense_rows(grad_out)
    direct = None if grad_total is None else dense_rows(grad_total)

    def make() -> Launch:
        numbers = {
            "out_row": row_stride(outer),
            "total_row": row_stride(direct),
            "rows": rows,
            "run": run,
            "dim": dim,
            "eps": eps,
            "CENTRED": centred,
            "PADDED": _padded(dim),
        }
        return Launch(backward_kernel, runs, numbers, warps=_warps(dim))

    tensors = (outer, direct, total.contiguous(), weight.contiguous(), grad, sums)
    launch(tensors, ("add_norm_backward", eps, centred), make)
    whole = sums.sum(0)
    return grad, grad_weight.copy_(whole[0]), grad_bias.copy_(whole[1])


def _padded(dim: int) -> int:
    if dim > MAX_DIM:
        raise ProblemError(
            f"dim is {dim}: at most {MAX_DIM} on a GPU; call inside scanlab.runtime.ops.in_torch() beyond."
        )
    padded: int = triton.next_power_of_2(dim)
    return padded


def _warps(dim: int) -> int:
    return min(16, max(1, _padded(dim) // 256))


define(
    "scanlab_mixer_triton::add_norm(Tensor hidden, Tensor? residual, Tensor weight, Tensor? bias, float eps,"
    " bool centred, bool wide_total) -> (Tensor, Tensor)",
    add_norm,
    empty_outputs,
    keep=keep_total,
    gradients=gradients(lambda *given: torch.ops.scanlab_mixer_triton.add_norm_backward(*given)),
)
define(
    "scanlab_mixer_triton::add_norm_backward(Tensor grad_out, Tensor? grad_total, Tensor total, Tensor weight,"
    " float eps, bool centred) -> (Tensor, Tensor, Tensor)",
    add_norm_backward,
    empty_gradients,
    refuses=NO_SECOND_DERIVATIVES,
)
