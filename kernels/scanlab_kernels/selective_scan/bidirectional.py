"""Reverse and bidirectional scans composed of a forward scan, by reversing tensors along time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scanlab.contract.backend import ScanFn
from scanlab.contract.base import expect_strided
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem


def flip_time(inputs: ScanInputs) -> ScanInputs:
    """Return the inputs reversed along time; constants and the initial state stay the same."""

    def projection(values: Tensor) -> Tensor:
        if values.dim() == 2:
            return values
        if inputs.A.is_complex():  # interleaved (real, imaginary) pairs stay pairs
            pairs: Tensor = values.unflatten(-1, (-1, 2))
            return pairs.flip(-2).flatten(-2)
        return values.flip(-1)

    flipped = {
        name: getattr(inputs, name).flip(-1) for name in ("u", "delta", "z") if getattr(inputs, name) is not None
    }
    return inputs.with_tensors(B=projection(inputs.B), C=projection(inputs.C), **flipped)


def directed(forward: Callable[[ScanInputs], ScanOutput], problem: ScanProblem) -> ScanFn:
    """Return the scan in the direction of the problem, composed of a forward scan of dense tensors.

    Source: arXiv 2401.09417 (Vision Mamba), Algorithm 1, which sums the outputs of both directions.
    """

    def dense(inputs: ScanInputs) -> ScanOutput:
        expect_strided(inputs)  # a dispatcher tells inputs apart by shapes, dtypes and devices
        return forward(inputs)

    def reverse(inputs: ScanInputs) -> ScanOutput:
        result = dense(flip_time(inputs))
        return ScanOutput(result.out.flip(-1), result.last_state)

    def bidirectional(first: ScanInputs, second: ScanInputs) -> ScanOutput:
        one, other = dense(first), reverse(second)
        return ScanOutput(one.out + other.out, torch.stack((one.last_state, other.last_state)))

    scans: dict[str, ScanFn] = {"forward": dense, "reverse": reverse, "bidirectional": bidirectional}
    return scans[problem.direction]
