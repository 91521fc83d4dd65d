"""Backends of `linear` out of functions of a prepacked weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from scanlab.contract.backend import OpCapabilities, OpFn
from scanlab.contract.base import Problem
from scanlab.contract.cpu import pinned
from scanlab.contract.space import Config
from scanlab_kernels.linear.op import LinearInputs, LinearOutput, LinearProblem
from scanlab_kernels.linear.weights import PrepackedWeight
from scanlab_kernels.weight_cache import RecentWeights

# (x, weight, bias) -> x weight^T + bias
Linear = Callable[[Tensor, PrepackedWeight, Tensor | None], Tensor]


@dataclass(frozen=True)
class LinearCapabilities(OpCapabilities):
    """The problems that a backend of `linear` can solve.

    Attributes:
        max_rows: Largest number of rows; None if any number will do.
    """

    max_rows: int | None = None

    def rejects(self, problem: Problem) -> str | None:
        """Return why a backend with these capabilities cannot solve `problem`, or None."""
        reason = super().rejects(problem)
        if reason is not None or self.max_rows is None:
            return reason
        assert isinstance(problem, LinearProblem)
        return f"{problem.rows} rows: it takes at most {self.max_rows}" if problem.rows > self.max_rows else None


def maker(linear: Linear, prepare: Callable[[], object] = lambda: None) -> Callable[[LinearProblem, Config], OpFn]:
    """Return the `make` of a backend that multiplies by `linear`.

    Args:
        linear: The product.
        prepare: Called once for each problem, before the first product.
    """

    def make(problem: LinearProblem, config: Config) -> OpFn:
        prepare()
        recent = RecentWeights[PrepackedWeight]()

        def run(inputs: LinearInputs) -> LinearOutput:
            x, weight, bias, given = inputs
            if given is None or given.weight is not weight:
                given = recent(lambda: PrepackedWeight(weight), weight)
            return LinearOutput(linear(x, given, bias))

        return pinned(run, int(config["threads"]))

    return make
