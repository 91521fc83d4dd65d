"""State-space duality (Mamba-2) by the machine's choice of backend."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from scanlab.contract.base import weight_dtype
from scanlab.runtime import dispatch
from scanlab_kernels.ssd.problem import NO_LIMIT, Limits, SsdInputs, SsdOutput, SsdProblem


def ssd(inputs: SsdInputs, *, dt_softplus: bool = False, dt_limit: Limits = NO_LIMIT) -> SsdOutput:
    """Return the outputs and the final state of Mamba-2's scan; shapes in `scanlab_kernels.ssd.problem`.

    Mixtures of dtypes are promoted exactly: x, B, C and z to the widest of theirs, all others to the float32 or float64
    that goes with it. Differentiable in every tensor, final_state included.

    Args:
        inputs: The tensors.
        dt_softplus: Apply softplus to dt + dt_bias.
        dt_limit: The lowest and the highest step size.

    Raises:
        ProblemError: The tensors do not fit together.
        UnavailableError: No backend serves the problem.
    """
    asked = _promoted(inputs)
    gradients = torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in asked)
    problem = SsdProblem.of(asked, dt_softplus=dt_softplus, dt_limit=dt_limit, gradients=gradients)
    out, final_state = dispatch.dispatcher().run(problem, asked)
    return SsdOutput(out.to(inputs.x.dtype), final_state)


def _promoted(inputs: SsdInputs) -> SsdInputs:
    """Return these inputs in the dtypes that a problem asks for."""
    varying = {"x", "B", "C", "z"}
    given = {name: each for name, each in inputs._asdict().items() if each is not None}
    dtype = functools.reduce(torch.promote_types, {given[name].dtype for name in varying & given.keys()})
    weight = weight_dtype(dtype)

    def fit(name: str, tensor: Tensor) -> Tensor:
        return tensor.to(torch.int32 if name == "seq_idx" else dtype if name in varying else weight)

    return inputs._replace(**{name: fit(name, each) for name, each in given.items()})
