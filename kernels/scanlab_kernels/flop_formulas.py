"""Floating-point operations of scanlab's torch ops, for torch.utils.flop_counter.FlopCounterMode.

As torch does, a multiply-add counts as two operations, and neither exponentials nor normalisations count.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from scanlab_kernels.after_import import AfterImport
from scanlab_kernels.selective_scan.arguments import PER_DIRECTION
from scanlab_kernels.selective_scan.op import MULTIPLY_ADDS

COUNTER = "torch.utils.flop_counter"
# The states again, their gradients, and the products that give the gradients of the inputs.
PASSES_OF_BACKWARD = 3

Shape = Sequence[int]


def scan(*arguments: Any, **named: Any) -> int:
    """Return the operations of a scan in one or two directions, from the shapes of its arguments."""
    (batch, dim, length), (_, state) = arguments[0], arguments[2]
    directions = 1 if arguments[PER_DIRECTION] is None else 2
    return int(2 * MULTIPLY_ADDS * batch * dim * length * state * directions)


def scan_backward(grad_out: Shape, grad_last: Shape | None, *arguments: Any, **named: Any) -> int:
    """Return the operations of the gradients of a scan."""
    return PASSES_OF_BACKWARD * scan(*arguments)


def native_scan_backward(
    grad_out: Shape, grad_last: Shape | None, checkpoints: Shape, *arguments: Any, **named: Any
) -> int:
    """Return the operations of the gradients of a scan, from the arguments of the native op."""
    return PASSES_OF_BACKWARD * scan(*arguments)


def causal_conv1d(
    x: Shape, weight: Shape | None, bias: Shape | None, weight_reverse: Shape | None, *rest: Any, **named: Any
) -> int:
    """Return the operations of a convolution in one or two directions."""
    taps = sum(each[-1] for each in (weight, weight_reverse) if each is not None)
    return 2 * math.prod(x) * taps


def causal_conv1d_backward(grad: Shape | None, grad_reverse: Shape | None, *arguments: Any, **named: Any) -> int:
    """Return the operations of the gradients of a convolution: those of x and those of the weights."""
    return 2 * causal_conv1d(*arguments)


def causal_conv1d_update(x: Shape, conv_state: Shape, weight: Shape, *rest: Any, **named: Any) -> int:
    """Return the operations of the next steps of a convolution."""
    return 2 * math.prod(x) * weight[-1]


def gemv(x: Shape, weight: Shape, *rest: Any, **named: Any) -> int:
    """Return the operations of a product of few rows."""
    return 2 * math.prod(x) * weight[0]


def packed_linear(x: Shape, packed: Shape, bias: Shape | None, features: int, **named: Any) -> int:
    """Return the operations of a product with a prepacked weight."""
    return 2 * math.prod(x) * features


def mamba_front(hidden: Shape, *arguments: Any, **named: Any) -> int:
    """Return the operations of the projections and convolutions before the scans of a block."""
    weight, weight_reverse, rank, selected = arguments[4], arguments[8], arguments[12], arguments[13]
    dim, width = weight
    directions = 1 if weight_reverse is None else 2
    per_row: int = dim * (2 * hidden[-1] + directions * (width + selected + rank))
    return 2 * math.prod(hidden[:-1]) * per_row


def selective_state_update(state: Shape, x: Shape, *rest: Any, **named: Any) -> int:
    """Return the operations of one step of a scan."""
    return 2 * MULTIPLY_ADDS * math.prod(x) * state[-1]


def cross_scan_2d(u: Shape, delta: Shape, A: Shape, *rest: Any, **named: Any) -> int:
    """Return the operations of the scans of a map in all directions, with the projection of a low rank of delta."""
    dt_weight, (directions, _, state) = rest[4], A
    rank = 0 if dt_weight is None else dt_weight[-1]
    return int(2 * math.prod(u) * directions * (MULTIPLY_ADDS * state + rank))


def ssd(x: Shape, dt: Shape, A: Shape, B: Shape, *rest: Any, **named: Any) -> int:
    """Return the operations of Mamba-2's scan as a recurrence, for any chunk: each state is updated and read."""
    return int(2 * 2 * math.prod(x) * B[-1])


def ssd_backward(
    grad_out: Shape, grad_final: Shape | None, chunk_states: Shape, ungated: Shape, *arguments: Any, **named: Any
) -> int:
    """Return the operations of the gradients of Mamba-2's scan."""
    return PASSES_OF_BACKWARD * ssd(*arguments)


def traced_ssd_backward(grad_out: Shape, grad_final: Shape, *arguments: Any, **named: Any) -> int:
    """Return the operations of the gradients of Mamba-2's scan, from the arguments of the op in graphs."""
    return PASSES_OF_BACKWARD * ssd(*arguments)


def mixer_step(projected: Shape, conv_state: Shape, state: Shape, weight: Shape, *rest: Any, **named: Any) -> int:
    """Return the operations of one token between the projections of a block."""
    _, x_weight, dt_weight, *_ = rest
    batch: int = projected[0]
    dim = weight[0]
    products = sum(math.prod(each) for each in (weight, x_weight, dt_weight))
    return 2 * batch * products + selective_state_update(state, (batch, dim))


FORMULAS: Mapping[str, Mapping[str, Callable[..., int]]] = {
    "scanlab": {"scan": scan, "scan_with_checkpoints": scan, "scan_backward": native_scan_backward},
    "scanlab_runtime": {"scan": scan, "scan_backward": scan_backward, "ssd": ssd, "ssd_backward": traced_ssd_backward},
    "scanlab_cross_scan": {"cross_scan_2d": cross_scan_2d},
    "scanlab_ssd": {"forward": ssd, "backward": ssd_backward},
    "scanlab_mixer": {
        "causal_conv1d": causal_conv1d,
        "causal_conv1d_backward": causal_conv1d_backward,
        "causal_conv1d_update": causal_conv1d_update,
        "gemv": gemv,
        "packed_linear": packed_linear,
        "mamba_front": mamba_front,
        "selective_state_update": selective_state_update,
        "mixer_step": mixer_step,
    },
}
_loaded: set[str] = set()


def count(namespace: str) -> None:
    """Let FlopCounterMode count the ops of a namespace, which are loaded; counters that are counting already, too."""
    _loaded.add(namespace)
    counter = sys.modules.get(COUNTER)
    if counter is not None:
        _register(counter)


def _register(counter: ModuleType) -> None:
    for namespace in _loaded:
        ops = getattr(torch.ops, namespace)
        missing = {
            getattr(ops, name): formula
            for name, formula in FORMULAS[namespace].items()
            if hasattr(ops, name) and getattr(ops, name) not in counter.flop_registry
        }
        for op, formula in missing.items():
            wrapped = counter.register_flop_formula(op)(formula)
            for mode in _get_current_dispatch_mode_stack():
                if hasattr(mode, "counter") and hasattr(mode.counter, "flop_registry"):
                    mode.counter.flop_registry[op] = wrapped


sys.meta_path.insert(0, AfterImport(re.escape(COUNTER), _register))
