"""Weights of a Mamba block around its scan, under the official names, and the products that use them.

All tensors are dim-last, (batch, length, dim), as matrix products leave them; the scan gets transposed views, so that
nothing is copied. The reverse direction reverses no sequence: its convolution reads later steps instead of earlier
ones, and its scan runs from the last time step to the first.

Source: hustvl/Vim@dd0358a, mamba-1p1p1/mamba_ssm/modules/mamba_simple.py, Mamba.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from scanlab import settings
from scanlab.contract.backend import ScanFn
from scanlab.contract.problem import Direction, ScanInputs
from scanlab.errors import ProblemError
from scanlab.runtime.blocks import NativeOps, is_norm_native, native_ops
from scanlab.runtime.dispatch import Scan, input_kind, serving
from scanlab.runtime.dispatcher import Bound, keep
from scanlab.runtime.front import mamba_front, plan_front
from scanlab.runtime.ops import (
    DirectionWeights,
    FrontWeights,
    InProjection,
    PrepackedWeight,
    WeightCache,
    linear,
    plan_linear,
)
from scanlab.runtime.products import Rows
from scanlab.runtime.step import StepProjections
from scanlab_kernels.linear.prepacked import Linear
from scanlab_kernels.mamba_blocks.native import BoundBlock, NormParts, OutParts
from scanlab_kernels.mamba_front.weights import Front

# How layers compute whose weights are read here; a parametrized layer is one of them.
PLAIN = (nn.Linear.forward, nn.Conv1d.forward)

# Names of the weights of a mixer, by bimamba_type: its layers, and parameters of its own.
SHARED = ("in_proj", "out_proj")
FORWARD, REVERSE = ("conv1d", "x_proj", "dt_proj"), ("conv1d_b", "x_proj_b", "dt_proj_b")
LAYERS = {"none": (*SHARED, *FORWARD), "v1": (*SHARED, *FORWARD), "v2": (*SHARED, *FORWARD, *REVERSE)}
OWN = {
    "none": ("A_log", "D", "gamma"),
    "v1": ("A_log", "D", "A_b_log", "gamma"),
    "v2": ("A_log", "D", "A_b_log", "D_b", "gamma"),
}


class ScanWeights(NamedTuple):
    """Weights of the scan of one direction: A (dim, state), D and delta_bias (dim,)."""

    A: Tensor
    D: Tensor
    delta_bias: Tensor

    def inputs(self, z: Tensor, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> ScanInputs:
        """Return the inputs of the scan from the outputs of the front, and the gate z (batch, dim, length): views."""
        return ScanInputs(u.mT, delta.mT, self.A, B.mT, C.mT, self.D, z, self.delta_bias)


class Plan(NamedTuple):
    """Ops of a block, resolved for one kind of input: fused front, scan, and output projection.

    `native` holds the choices for them if one native op can run the whole block.
    """

    front: Front
    scan: ScanFn
    linear: Linear
    native: NativeOps | None


class Weights(NamedTuple):
    """Weights of a mixer as it computes with them.

    Attributes:
        front: Weights of the front of every direction; `forward_front` is of the forward one alone.
        scan_forward: Weights of the scan in the order of time; `scan_reverse` against it.
        out: Output projection; `out_halved` is half of it.
        steps: Both projections as single tokens take them.
        plans: Ops of the block by kind of input; `bound` is the whole block as one native op runs it.
    """

    front: FrontWeights
    forward_front: FrontWeights
    scan_forward: ScanWeights
    scan_reverse: ScanWeights | None
    out: PrepackedWeight
    out_halved: PrepackedWeight
    out_bias: Tensor | None
    gamma: Tensor | None
    steps: StepProjections
    plans: OrderedDict[object, Plan]
    bound: OrderedDict[object, BoundBlock]

    def front_of(self, bidirectional: bool) -> FrontWeights:
        """Return the weights of the front of the directions that are scanned."""
        return self.front if bidirectional else self.forward_front

    def scan_inputs(self, hidden: Tensor, bidirectional: bool) -> tuple[ScanInputs, ...]:
        """Return the inputs of the scan of hidden (batch, length, dim) in each direction, in order of time."""
        return self.from_front(mamba_front(hidden, self.front_of(bidirectional)), bidirectional)

    def from_front(self, outputs: tuple[Tensor, ...], bidirectional: bool) -> tuple[ScanInputs, ...]:
        """Return the inputs of the scan from the outputs of the front."""
        gate = outputs[0].mT
        given = outputs[1:5], outputs[-4:]
        return tuple(scan.inputs(gate, *each) for scan, each in zip(self.scans_of(bidirectional), given, strict=False))

    def scans_of(self, bidirectional: bool) -> tuple[ScanWeights, ...]:
        """Return the weights of the scan of the directions that are scanned."""
        if not bidirectional:
            return (self.scan_forward,)
        assert self.scan_reverse is not None
        return self.scan_forward, self.scan_reverse

    def native_ops(self, hidden: Tensor, scan: Bound, bidirectional: bool) -> NativeOps | None:
        """Return the choices for the mixer; None unless one native op can run it for inputs like hidden."""
        front = self.front_of(bidirectional)
        if self.gamma is not None or len(front.directions) != len(self.scans_of(bidirectional)):
            return None
        return native_ops(hidden, front, scan, self.out)

    def bind(
        self, kind: object, norm: NormParts, hidden: Tensor, *, bidirectional: bool, halves: bool
    ) -> BoundBlock | None:
        """Return the block with this norm before the mixer as one native op runs it, or None.

        Args:
            kind: Kind of input, for which the mixer was called before.
            norm: The norm.
            hidden: Such an input of the norm.
            bidirectional: As in `Mixing.mix`.
            halves: As in `Mixing.mix`.
        """
        plan, bound = self.plans.get(kind), self.bound.get(kind)
        if bound is not None and bound.has_norm(norm):
            return bound
        if plan is None or plan.native is None or not is_norm_native(hidden, norm):
            return None
        rows = hidden.numel() // hidden.shape[-1]
        out = OutParts(self.out_halved if halves else self.out, self.out_bias, rows, plan.native.product)
        bound = BoundBlock(
            norm, self.front_of(bidirectional), self.scans_of(bidirectional), plan.native.scan_config, out
        )
        keep(self.bound, kind, bound, settings.MAX_KEPT_PLANS)
        return bound

    def project(self, product: Linear, y: Tensor, halves: bool) -> Tensor:
        """Return the output (batch, length, dim) of a scan's (batch, inner, length), or of half of it."""
        # halving the weight is halving the sum, on the smaller tensor; a bias is not halved
        out = product(y.mT, self.out_halved if halves else self.out, self.out_bias)
        return out if self.gamma is None else out * self.gamma

    def mixed(self, y: Tensor, *, halves: bool) -> Tensor:
        """Return `project` with the product that serves y."""
        return self.project(linear, y, halves)


class Mixing(nn.Module):
    """The weights of a mixer under their official names; inference caches the values derived from them.

    A subclass makes the weights, and gamma where the output is scaled. A reverse direction has all of those
    with `_b` (bimamba_type v2), or A_b_log alone and shares the others (v1).
    """

    bimamba_type: str
    in_proj: nn.Linear
    conv1d: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    out_proj: nn.Linear
    A_log: nn.Parameter
    D: nn.Parameter
    gamma: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("gamma", None)
        self._derived = WeightCache[Weights]()

    def train(self, mode: bool = True) -> Self:
        """Set the mode as torch does, and drop the values derived from the weights: `.data` may change them unseen."""
        self._derived.clear()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Cast or move the weights as torch does, and drop the values derived from the old ones."""
        self._derived.clear()
        applied: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return applied

    def weights(self) -> Weights:
        """Return the weights as the mixer computes with them.

        Raises ProblemError where a layer computes anything else than with its weight: it would be passed over.
        """
        modules = self._modules
        layers: list[Any] = [modules[name] for name in LAYERS[self.bimamba_type]]
        for layer in layers:
            if type(layer).forward not in PLAIN:
                raise ProblemError(
                    f"a layer of the mixer is a {type(layer).__module__}.{type(layer).__name__}: must compute as"
                    " torch.nn.Linear or Conv1d does, for the mixer multiplies with its weight itself; merge an adapter"
                    " into the weight, or parametrize the weight."
                )
        tensors = [get_parameter(self, name) for name in OWN[self.bimamba_type]]
        tensors += [get_parameter(layer, name) for layer in layers for name in ("weight", "bias")]
        return self._derived(self._make, *tensors)

    def mix(self, hidden: Tensor, scan: Scan, *, bidirectional: bool, halves: bool) -> Tensor:
        """Return the output of the block for hidden (batch, length, dim), the same shape.

        The ops are resolved once for each kind of input in inference, and kept with the weights.
        """
        weights = self.weights()
        kind = input_kind(hidden, scan) if self._derived.holds(weights) else None
        plan = weights.plans.get(kind) if kind is not None else None
        if plan is None:
            inputs = weights.scan_inputs(hidden, bidirectional)
            direction: Direction = "bidirectional" if bidirectional else "forward"
            y = scan(*inputs, direction=direction).out
            serve = None if kind is None else serving(scan)
            if kind is not None and serve is not None:
                bound = serve.bind(inputs, True, direction)
                rows = Rows(y.numel() // y.shape[1], y.dtype)
                plan = Plan(
                    plan_front(hidden, weights.front_of(bidirectional)),
                    bound.function,
                    plan_linear(rows, weights.out),
                    weights.native_ops(hidden, bound, bidirectional),
                )
                keep(weights.plans, kind, plan, settings.MAX_KEPT_PLANS)
            return weights.mixed(y, halves=halves)
        y = plan.scan(*weights.from_front(plan.front(hidden), bidirectional)).out
        return weights.project(plan.linear, y, halves)

    def _make(self) -> Weights:
        into = InProjection(PrepackedWeight(self.in_proj.weight), self.in_proj.bias)
        forward, scan_reverse = self._direction(""), None
        forward_front = front = FrontWeights(into, forward)
        if self.bimamba_type == "v2":
            front, scan_reverse = FrontWeights(into, forward, self._direction("_b")), self._scan_weights("_b")
        elif self.bimamba_type == "v1":
            scan_reverse = self._scan_weights("", "A_b_log")
        out = PrepackedWeight(self.out_proj.weight)
        return Weights(
            front=front,
            forward_front=forward_front,
            scan_forward=self._scan_weights(""),
            scan_reverse=scan_reverse,
            out=out,
            out_halved=PrepackedWeight(0.5 * self.out_proj.weight),
            out_bias=self.out_proj.bias,
            gamma=self.gamma,
            steps=StepProjections(into.weight, out),
            plans=OrderedDict(),
            bound=OrderedDict(),
        )

    def _direction(self, suffix: Literal["", "_b"]) -> DirectionWeights:
        conv, x, dt = (getattr(self, f"{name}{suffix}") for name in ("conv1d", "x_proj", "dt_proj"))
        weight, bias = taps(conv)
        return DirectionWeights(
            widen(weight), None if bias is None else widen(bias), PrepackedWeight(x.weight), PrepackedWeight(dt.weight)
        )

    def _scan_weights(self, suffix: Literal["", "_b"], A_log: str = "") -> ScanWeights:
        dtype = self.in_proj.weight.dtype
        return ScanWeights(
            A=rates(getattr(self, A_log or f"A{suffix}_log"), dtype),
            D=as_scanned(getattr(self, f"D{suffix}"), dtype),
            # the bias goes into the scan, before the softplus
            delta_bias=as_scanned(getattr(self, f"dt_proj{suffix}").bias, dtype),
        )


def get_parameter(module: nn.Module, name: str) -> Tensor | None:
    """Return `module.name`, a parameter or its parametrization, without nn.Module's search for a parameter."""
    own = module._parameters
    found: Tensor | None = own[name] if name in own else getattr(module, name)
    return found


def widen(values: Tensor) -> Tensor:
    """Return `values` in at least float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def as_scanned(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `values` in the dtype that a scan of inputs in `dtype` computes in."""
    return values.to(torch.promote_types(dtype, torch.float32))


def rates(A_log: Tensor, dtype: torch.dtype) -> Tensor:
    """Return A of a scan of inputs in `dtype`."""
    return -torch.exp(as_scanned(A_log, dtype))


def taps(convolution: nn.Conv1d) -> tuple[Tensor, Tensor | None]:
    """Return weight (dim, width) and bias (dim,) of a depthwise convolution."""
    return convolution.weight[:, 0], convolution.bias
