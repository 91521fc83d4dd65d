"""The recurrence as torch's scan operator, which becomes the operator Scan of ONNX: one step, written once.

It is a graph that is exported, not a backend: run in torch, it is as slow as the reference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.contract.problem import Direction, ScanInputs, ScanOutput
from scanlab.errors import UnavailableError


def scan(*inputs: ScanInputs, delta_softplus: bool = True, direction: Direction = "forward") -> ScanOutput:
    """Return the scan of these inputs, both directions in one operator.

    Raises:
        UnavailableError: A is complex, or the graph is made by torch.onnx.export(dynamo=False).
    """
    if inputs[0].A.is_complex():
        raise UnavailableError("ONNX has no complex numbers: a scan with a complex A cannot be exported to it.")
    if torch._C._is_tracing():
        raise UnavailableError(
            "torch.onnx.export(dynamo=False) cannot hold a scan of free length: leave dynamo=False away."
        )
    # imported here because it takes a second to load, which only an export needs
    from torch._higher_order_ops.scan import scan as over_time

    directions = by_direction(inputs, delta_softplus, direction)
    start = torch.stack([each.start for each in directions])  # (direction, batch, dim, state)
    # whole, because the operator cannot tell that a size which is 1 here will always be 1
    A = torch.stack([each.A for each in directions])[:, None].expand_as(start)

    def stacked(name: str) -> Tensor:
        """Return the values of every direction, (length, direction, batch, ...)."""
        return torch.stack([getattr(each, name) for each in directions], dim=1)

    def step(h: Tensor, now: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        delta, drive, B, C = now
        h = torch.exp(delta[..., None] * A) * h + drive[..., None] * _by_channel(B, h)
        return h, (h * _by_channel(C, h)).sum(-1)

    last_state, y = over_time(step, start, (stacked("delta"), stacked("drive"), stacked("B"), stacked("C")))
    out = torch.stack([each.finished(y[:, index]) for index, each in enumerate(directions)]).sum(0)
    return ScanOutput(out.to(inputs[0].u.dtype), last_state if len(inputs) == 2 else last_state[0])


def by_direction(inputs: tuple[ScanInputs, ...], delta_softplus: bool, direction: Direction) -> list[ScanByTime]:
    """Return the inputs of each direction in its own order of time."""
    is_reverse = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    return [ScanByTime(each, reverse, delta_softplus) for each, reverse in zip(inputs, is_reverse, strict=True)]


def _by_channel(values: Tensor, h: Tensor) -> Tensor:
    """Return the B or C of a step with an axis for the channels of h."""
    return values if values.dim() == h.dim() else values[..., None, :]


class ScanByTime:
    """One direction of a scan in its own order of time: delta, drive, B and C begin with the axis of time."""

    def __init__(self, inputs: ScanInputs, reverse: bool, delta_softplus: bool) -> None:
        self._inputs, self._reverse = inputs, reverse
        self.A = inputs.A
        self._u = self._by_time(inputs.u)
        biased = self._by_time(inputs.delta)
        if inputs.delta_bias is not None:
            biased = biased + inputs.delta_bias
        self.delta = F.softplus(biased) if delta_softplus else biased
        self.drive = self.delta * self._u
        self.B, self.C = self._projection(inputs.B), self._projection(inputs.C)
        state = (inputs.u.shape[0], *inputs.A.shape)
        self.start = inputs.A.new_zeros(state) if inputs.initial_state is None else inputs.initial_state

    def _by_time(self, values: Tensor) -> Tensor:
        """Return (batch, ..., length) as (length, batch, ...) in the dtype of A."""
        values = values.flip(-1) if self._reverse else values
        return values.movedim(-1, 0).to(self.A.dtype)

    def _projection(self, values: Tensor) -> Tensor:
        """Return B or C as (length, batch, [dim,] state)."""
        if values.dim() == 2:
            return values.expand(*self.drive.shape, -1)
        if values.dim() == 3:
            return self._by_time(values)
        return self._by_time(values).repeat_interleave(self.A.shape[0] // values.shape[1], dim=2)

    def finished(self, y: Tensor) -> Tensor:
        """Return the output (batch, dim, length) in natural order of time, from <C, h> (length, batch, dim)."""
        if self._inputs.D is not None:
            y = y + self._inputs.D * self._u
        out = y.movedim(0, -1)
        out = out.flip(-1) if self._reverse else out
        return out if self._inputs.z is None else out * F.silu(self._inputs.z.to(out.dtype))
