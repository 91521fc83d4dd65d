"""Verify an implementation on this machine before it serves, once, on a small instance: it takes milliseconds.

Verified are the kernels of a GPU, which may never have run on such a GPU before, and configurations that were tuned
for another size. A pass is recorded in the cache folder, for this machine, torch, and source of the backend.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scanlab.contract import registry
from scanlab.contract.base import Problem
from scanlab.contract.machine import this_machine
from scanlab.contract.space import config_key
from scanlab.contract.verify import reference_outputs, verify
from scanlab.errors import RejectedError, UnavailableError
from scanlab_kernels import pytorch
from scanlab_kernels.build import PACKAGE, cache_folder

if TYPE_CHECKING:
    from scanlab.runtime.decisions import Decision

# Largest error of an op of float32, as a share of the largest value.
OP_TOLERANCE = 2e-5


def must_verify(problem: Problem, decision: Decision) -> bool:
    """Return whether a decision has to be verified here before it serves.

    An exact entry of the profile was verified when it was tuned, and others are compared with the reference.
    """
    if decision.basis == "exact" or registry.get(decision.backend).rank == 0:
        return False
    return decision.basis == "nearest" or problem.device != "cpu"


def disagreement(problem: Problem, decision: Decision) -> str | None:
    """Return why a decision's backend disagrees with the reference here, or None if it agrees or has agreed before.

    A configuration that was tuned for another size is verified for each problem, others once for each family.
    """
    backend = registry.get(decision.backend)
    asked = problem if decision.basis == "nearest" else problem.family
    mark = _mark("scan", backend.name, backend.source_hash, config_key(decision.config), asked.key)
    if _is_there(mark):
        return None
    small = problem.small()
    try:
        function = backend.build(small, decision.config)
        verdict = verify(function, reference_outputs(small, registry.op(small.op).make_inputs(small, 0)))
    except (RejectedError, UnavailableError, RuntimeError) as error:
        return f"{backend.name} failed on {small.key}: {error}"
    if not verdict.passed:
        what = f"{backend.name} {config_key(decision.config)}"
        return f"{what} disagrees with the reference on {small.key}: {verdict.reason}"
    _remember(mark)
    return None


def ops_disagreement(ops: Any, name: str, device: str) -> str | None:
    """Return why the ops around the scan disagree with PyTorch on a device, or None if they agree or have before.

    Args:
        ops: Namespace of the ops.
        name: Name of the implementation, such as "triton".
        device: Such as "cuda".
    """
    mark = _mark("ops", name, _kernels_hash(), device)
    if _is_there(mark):
        return None
    for op, arguments in _op_cases().items():
        here = [each.to(device) if isinstance(each, Tensor) else each for each in arguments]
        error = _op_error(getattr(ops, op), getattr(pytorch, op), here)
        if not error <= OP_TOLERANCE:  # `not <=` so that NaN fails
            return f"{name}'s {op} disagrees with PyTorch on {device} by {error:.1e} of the largest value"
    _remember(mark)
    return None


def _op_cases() -> dict[str, tuple[Any, ...]]:
    """Return small arguments of every op around the scan."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    batch, dim, length, state, rank, width = 2, 40, 21, 8, 3, 4
    weights = normal(dim, width), normal(dim)
    rates = normal(dim, state)
    return {
        "add_norm": (normal(batch, dim), normal(batch, dim), normal(dim), normal(dim), 1e-5, True, True),
        "causal_conv1d": (normal(batch, dim, length), *weights, *weights, None, None, True),
        "causal_conv1d_update": (normal(batch, dim), normal(batch, dim, width), *weights, None, None, True),
        "selective_state_update": (
            *(normal(batch, dim, state), normal(batch, dim), normal(batch, dim), rates),
            *(normal(batch, state), normal(batch, state), normal(dim), normal(batch, dim), normal(dim)),
            *(True, None, True),
        ),
        "mixer_step": (
            *(normal(batch, 2 * dim), normal(batch, dim, width), normal(batch, dim, state), *weights),
            *(normal(rank + 2 * state, dim) / dim, normal(dim, rank), normal(dim), rates, normal(dim)),
        ),
    }


def _op_error(op: Callable[..., Any], reference: Callable[..., Any], arguments: list[Any]) -> float:
    """Return the largest error of an op's outputs and updated tensors, as a share of the largest value of each."""
    given = [each.clone() if isinstance(each, Tensor) else each for each in arguments]
    exact = [each.double() if isinstance(each, Tensor) else each for each in arguments]
    got, want = (_flat(each) for each in (op(*given), reference(*exact)))
    pairs = zip([*got, *_flat(given)], [*want, *_flat(exact)], strict=True)
    return max(float((one.double() - other).abs().max() / other.abs().max()) for one, other in pairs)


def _flat(values: Any) -> list[Tensor]:
    return [each for each in ([values] if isinstance(values, Tensor) else values) if isinstance(each, Tensor)]


def _mark(*facts: str) -> Path:
    """Return the empty file whose presence says that these facts were verified on this machine."""
    here = (this_machine().silicon_id, str(torch.__version__), *facts)
    return cache_folder() / "verified" / hashlib.sha256("\0".join(here).encode()).hexdigest()[:32]


def _kernels_hash() -> str:
    """Return a hash of the Python sources of all kernels."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _is_there(mark: Path) -> bool:
    try:
        return mark.exists()
    except PermissionError:
        return False


def _remember(mark: Path) -> None:
    try:
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark.touch()
    except OSError:
        return  # it is verified again in the next process
