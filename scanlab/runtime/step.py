"""One token through a Mamba mixer: two projections, and the fused step between them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from scanlab import settings
from scanlab.runtime.dispatch import input_kind, scan
from scanlab.runtime.dispatcher import keep
from scanlab.runtime.implementations import ops_for
from scanlab.runtime.ops import PrepackedWeight, linear, mixer_step, plan_linear
from scanlab.runtime.products import Rows
from scanlab_kernels.linear.prepacked import Linear
from scanlab_kernels.state_update import mixer_step as step_op


class Plan(NamedTuple):
    """Ops of a step, resolved for one kind of input: input projection, fused step, and output projection."""

    into: Linear
    step: Callable[..., Tensor]
    out: Linear


UNPLANNED = Plan(linear, mixer_step, linear)  # each looks at its input anew


class StepProjections:
    """Weights of the projections of a mixer as its steps multiply with them, and the plans of these steps.

    They are of the weights as they were: the owner drops them when a weight changes.

    Args:
        into: (2 dim, model).
        out: (model, dim).
    """

    def __init__(self, into: PrepackedWeight, out: PrepackedWeight) -> None:
        self._into, self._out = into, out
        self._plans: OrderedDict[object, Plan] = OrderedDict()

    def step(
        self,
        hidden: Tensor,
        into_bias: Tensor | None,
        out_bias: Tensor | None,
        conv_state: Tensor,
        state: Tensor,
        *weights: Tensor | None,
    ) -> Tensor:
        """Return the output of the mixer for one token; both states are updated in place.

        The ops are resolved once for each kind of input in inference.

        Args:
            hidden: (batch, model).
            into_bias: (2 dim,), or None.
            out_bias: (model,), or None.
            conv_state: As in `mixer_step`.
            state: As in `mixer_step`.
            weights: conv_weight to D, as in `mixer_step`.

        Returns:
            (batch, model).

        Raises:
            ValueError: Shapes, dtypes or devices do not fit; no state was touched. A ProblemError says more, at the
                first call of a kind.
        """
        kind = input_kind(hidden, scan)
        into, step, out = UNPLANNED if kind is None else self._plan(kind, hidden, into_bias, conv_state, state, weights)
        projected = into(hidden, self._into, into_bias)
        return out(step(projected, conv_state, state, *weights), self._out, out_bias)

    def _plan(
        self,
        kind: object,
        hidden: Tensor,
        into_bias: Tensor | None,
        conv_state: Tensor,
        state: Tensor,
        weights: tuple[Tensor | None, ...],
    ) -> Plan:
        """Return the plan for this kind of input, made and its tensors checked where it is new."""
        plan = self._plans.get(kind)
        if plan is None:
            rows = Rows(hidden.shape[0], hidden.dtype)
            into, out = plan_linear(rows, self._into), plan_linear(rows, self._out)
            projected = into(hidden, self._into, into_bias)
            step_op.check(projected, conv_state, state, *weights)  # type: ignore[arg-type]
            plan = Plan(into, ops_for(projected, state).mixer_step, out)
            keep(self._plans, kind, plan, settings.MAX_KEPT_PLANS)
        return plan
