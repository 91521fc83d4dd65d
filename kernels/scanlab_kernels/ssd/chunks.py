"""Drive an implementation chunk by chunk: everything that varies over time exists for one chunk alone.

The recurrence is Markov: the steps of a chunk need the state before it and nothing earlier. For gradients the state
before each chunk is kept, and the backward pass computes each chunk again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scanlab_kernels.autograd import once
from scanlab_kernels.ssd import operands as recurrence
from scanlab_kernels.ssd.operands import Operands
from scanlab_kernels.ssd.problem import SsdInputs, SsdOutput, SsdProblem

# (operands of one chunk) -> (y, the state after it); shapes as in `Operands` and `recurrence.epilogue`.
Solver = Callable[[Operands], tuple[Tensor, Tensor]]

VARYING = ("x", "dt", "B", "C", "z")
H = SsdInputs._fields.index("initial_state")


def ssd(inputs: SsdInputs, problem: SsdProblem, chunk: int, solve: Solver) -> SsdOutput:
    """Return the output and the final state, the steps of each chunk solved by `solve`; the last may be shorter."""
    h = inputs.initial_state
    if h is None:
        h = inputs.A.new_zeros(problem.batch, problem.heads, problem.head_dim, problem.state)
    is_new = recurrence.new_sequence(inputs)

    def step(part: SsdInputs, is_new: Tensor | None) -> SsdOutput:
        return recurrence.epilogue(*solve(recurrence.operands(part, problem, is_new)), part)

    given = inputs._replace(initial_state=h, seq_idx=None)
    return SsdOutput(*_Chunks.apply(step, chunk, is_new, *given))  # type: ignore[no-untyped-call]


class _Chunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, step: Callable[..., SsdOutput], chunk: int, is_new: Tensor | None, *tensors: Any
    ) -> tuple[Tensor, Tensor]:
        inputs = SsdInputs(*tensors)
        out, h, before = torch.empty_like(inputs.x), tensors[H], []
        keeps = any(ctx.needs_input_grad)
        for start in range(0, inputs.x.shape[1], chunk):
            now = slice(start, start + chunk)
            before += [h] if keeps else []
            out[:, now], h = step(*_during(inputs, is_new, now, h))
        ctx.step, ctx.chunk = step, chunk
        ctx.save_for_backward(is_new, *inputs, *before)
        return out, h

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        def gradients(grad_out: Tensor, grad_h: Tensor, *saved: Tensor) -> tuple[Any, ...]:
            is_new, inputs, before = (
                saved[0],
                SsdInputs(*saved[1 : 1 + len(SsdInputs._fields)]),
                saved[1 + len(SsdInputs._fields) :],
            )
            totals = inputs._replace(**{name: torch.zeros_like(each) for name, each in _given(inputs).items()})
            for index in reversed(range(len(before))):
                now = slice(index * ctx.chunk, (index + 1) * ctx.chunk)
                part, starts = _during(inputs, is_new, now, before[index])
                leaves = {name: each.detach().requires_grad_() for name, each in _given(part).items()}
                with torch.enable_grad():
                    results = ctx.step(part._replace(**leaves), starts)
                found = torch.autograd.grad(results, list(leaves.values()), (grad_out[:, now], grad_h))
                for name, share in zip(leaves, found, strict=True):
                    if name == "initial_state":
                        grad_h = share
                    else:
                        total = getattr(totals, name)
                        (total[:, now] if name in VARYING else total).add_(share)
            return tuple(totals._replace(initial_state=grad_h))

        return None, None, None, *once(gradients, grad_out, grad_h, *ctx.saved_tensors)


def _given(inputs: SsdInputs) -> dict[str, Tensor]:
    return {name: each for name, each in inputs._asdict().items() if each is not None}


def _during(inputs: SsdInputs, is_new: Tensor | None, now: slice, h: Tensor | None) -> tuple[SsdInputs, Tensor | None]:
    """Return the inputs of the steps `now`, whose first follows the state `h`."""
    varying = {name: each[:, now] for name, each in _given(inputs).items() if name in VARYING}
    return inputs._replace(**varying, initial_state=h), None if is_new is None else is_new[:, now]
