"""Front half of a Mamba block composed of an implementation of `linear` and one of `causal_conv1d`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from scanlab.contract.backend import Backend, OpCapabilities, OpFn
from scanlab.contract.base import DTYPES
from scanlab.contract.cpu import pinned, threads_tunable
from scanlab.contract.space import Config, Space, Tunable
from scanlab_kernels.causal_conv1d import native as conv_native
from scanlab_kernels.causal_conv1d import torch as conv_torch
from scanlab_kernels.causal_conv1d.op import ConvInputs, ConvProblem, call
from scanlab_kernels.implementations import NATIVE, TORCH
from scanlab_kernels.linear import mkl, native, onednn
from scanlab_kernels.linear import torch as by_torch
from scanlab_kernels.linear.op import LinearProblem
from scanlab_kernels.linear.prepacked import Linear
from scanlab_kernels.mamba_front.op import FrontProblem, runner
from scanlab_kernels.mamba_front.weights import Front, FrontWeights

# The convolutions with SiLU of each direction that has a weight
Convolve = Callable[[ConvInputs], tuple[Tensor, ...]]

PRODUCTS: dict[str, tuple[Linear, Backend]] = {
    "torch": (by_torch.linear, by_torch.backend),
    "onednn": (onednn.linear, onednn.backend),
    "mkl": (mkl.linear, mkl.backend),
    "native": (native.linear, native.backend),
}
CONVOLUTIONS = {"torch": (TORCH, conv_torch.backend), "native": (NATIVE, conv_native.backend)}


class Parts(NamedTuple):
    """Products and convolution of a front.

    Attributes:
        into: The input projection.
        x, dt: The products of a direction.
    """

    into: Linear
    x: Linear
    dt: Linear
    convolve: Convolve


def compose(parts: Parts, weights: FrontWeights) -> Front:
    """Return the front with these weights, which has gradients where its parts have them."""
    into, directions = weights.into, weights.directions
    taps = [each for direction in directions for each in (direction.conv_weight, direction.conv_bias)]

    def front(hidden: Tensor) -> tuple[Tensor, ...]:
        x, z = parts.into(hidden, into.weight, into.bias).split(into.dim, 2)
        results = [z]
        for u, direction in zip(parts.convolve(ConvInputs(x.mT, *taps)), directions, strict=True):
            by_time = u.mT
            low_rank, B, C = parts.x(by_time, direction.x, None).split_with_sizes(direction.sizes, 2)
            results += by_time, parts.dt(low_rank, direction.dt, None), B, C
        return tuple(results)

    return front


def conv_problem(problem: FrontProblem) -> ConvProblem:
    """Return the convolution in a front."""
    return ConvProblem(
        batch=problem.batch,
        dim=problem.dim,
        length=problem.length,
        width=problem.width,
        dtype=problem.dtype,
        device=problem.device,
        direction=problem.direction,
        gradients=problem.gradients,
        has_bias=problem.has_conv_bias,
        layout="dim_last",
    )


def forbids(config: Config, problem: FrontProblem) -> str | None:
    """Return why this configuration is not legal for the problem, or None."""
    product = PRODUCTS[str(config["linear"])][1]
    convolution = CONVOLUTIONS[str(config["conv"])][1]
    asked = LinearProblem(
        rows=1,
        in_features=1,
        out_features=1,
        dtype=problem.dtype,
        device=problem.device,
        gradients=problem.gradients,
    )
    reason = product.rejects(asked) or product.unavailable()
    if reason is not None:
        return f"{product.name}: {reason}"
    return convolution.unavailable() if problem.device == "cpu" else None


def make(problem: FrontProblem, config: Config) -> OpFn:
    """Return the front composed as the configuration says."""
    linear, conv = str(config["linear"]), str(config["conv"])
    implementation = CONVOLUTIONS[conv][0]
    implementation.load()
    convolution = conv_problem(problem)
    if linear == "native":
        NATIVE.load()
    product = PRODUCTS[linear][0]
    parts = Parts(product, product, product, call(convolution, implementation.ops()))
    return pinned(runner(("composed", linear, conv), lambda weights: compose(parts, weights)), int(config["threads"]))


backend = Backend(
    name="mamba_front_composed",
    summary="composed of products and convolutions",
    rank=0,
    sources=(Path(__file__), *(part[1].sources[0] for part in (*PRODUCTS.values(), *CONVOLUTIONS.values()))),
    space=Space(
        (
            Tunable("linear", tuple(PRODUCTS), default="torch", summary="implementation of the products"),
            Tunable("conv", tuple(CONVOLUTIONS), default="torch", summary="implementation of the convolutions"),
            threads_tunable(),
        ),
        forbids,
    ),
    capabilities=OpCapabilities(devices=("cpu", "cuda"), dtypes=tuple(DTYPES), gradients=True),
    make=make,
    op="mamba_front",
)
