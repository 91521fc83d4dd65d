"""Build the function that serves a problem of any op, by the backend that was decided for it, and keep it.

A backend that the caller names serves; else see `decisions`. Any other than the tuned choice is logged once, and with
SCANLAB_STRICT=1 it is an error; the parts of a block are logged as information only.
"""

from __future__ import annotations

import itertools
import logging
import operator
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch

from scanlab import settings
from scanlab.contract import registry
from scanlab.contract.backend import Backend, OpFn
from scanlab.contract.base import Problem
from scanlab.contract.problem import Direction, ScanInputs, ScanOutput, ScanProblem, check
from scanlab.contract.space import Config, config_key
from scanlab.errors import RejectedError, UnavailableError
from scanlab.runtime import traced, usage
from scanlab.runtime.decisions import PARTS, Decision, decisions, nothing_serves
from scanlab.runtime.empty_scan import scan_empty
from scanlab.runtime.policy import DEFAULT, TUNED, Policy
from scanlab.runtime.profile import Profile
from scanlab.runtime.promotion import promoted_scan
from scanlab.runtime.verification import disagreement, must_verify

log = logging.getLogger("scanlab")

Key = TypeVar("Key")
Value = TypeVar("Value")

NOTHING_TO_SCAN = Decision("none", {}, "fallback", "there is nothing to scan")
ON_META = Decision("none", {}, "fallback", "tensors without data have shapes alone")


class Bound(NamedTuple):
    """The function that serves one kind of input.

    Attributes:
        problem: Problem of such inputs; None for an empty scan, which needs no backend.
        function: Built for the problem by the backend that was decided for.
        decision: Backend, configuration, and the reason.
        promotes: Whether inputs of a scan are to be promoted first.
    """

    problem: Problem | None
    function: OpFn
    decision: Decision
    promotes: bool = False


class Dispatcher:
    """Serves each problem of any op with the backend decided for it, built once and kept; called, it is a Scan.

    At most settings.MAX_KEPT_SCANS are kept; the oldest goes first. Safe to call from several threads and after a fork.

    Args:
        named: Backend that serves every problem of its op, such as "native" or "chunked:chunk=32"; overrides the
            profile.
        profile: Choices of this machine.
        policy: Rule of which ops follow the profile; all of them where None.
    """

    def __init__(self, named: str | None = None, profile: Profile | None = None, policy: Policy | None = None) -> None:
        self._named: tuple[Backend, Config] | None = None if named is None else registry.parse_selection(named)
        self._profile = profile
        self._policy = policy
        self._bound: OrderedDict[object, Bound] = OrderedDict()
        self._built: OrderedDict[Problem, tuple[OpFn, Decision]] = OrderedDict()
        self._warned: OrderedDict[str, None] = OrderedDict()
        self.renew_lock()

    def renew_lock(self) -> None:
        """Forget who holds the lock: a thread that the child of a fork does not have."""
        self._lock = threading.RLock()

    def __call__(
        self,
        *inputs: ScanInputs,
        delta_softplus: bool = True,
        direction: Direction = "forward",
        promote: bool = False,
    ) -> ScanOutput:
        """Return the scan of these tensors.

        Args:
            inputs: One set for each direction.
            delta_softplus: Apply softplus to delta + delta_bias.
            direction: Order of time.
            promote: Promote mixed dtypes, see `promoted_scan`.

        Raises:
            ProblemError: The tensors do not fit together.
        """
        return self.scan(inputs, delta_softplus, direction, promote)

    def scan(
        self, inputs: tuple[ScanInputs, ...], delta_softplus: bool, direction: Direction, promote: bool
    ) -> ScanOutput:
        """Return the scan of these tensors; arguments and errors are those of a call."""
        bound = self.bind(inputs, delta_softplus, direction, promote)
        if bound.promotes:
            inputs = tuple(map(promoted_scan, inputs))
        result: ScanOutput = bound.function(*inputs) if not usage.active() else call_logged(bound, *inputs)
        return result

    def run(self, problem: Problem, *inputs: Any) -> Any:
        """Return the outputs of an op for these inputs, which pose `problem`.

        Args:
            problem: Problem of any op that is installed.
            inputs: As the op's backends take them.

        Raises:
            UnavailableError: No backend serves the problem.
        """
        bound = self.bound_to(problem, lambda: problem)
        return bound.function(*inputs) if not usage.active() else call_logged(bound, *inputs)

    def bind(
        self, inputs: tuple[ScanInputs, ...], delta_softplus: bool, direction: Direction, promote: bool = False
    ) -> Bound:
        """Return the scan that serves such tensors; arguments and errors are those of a call."""
        u, wanted = inputs[0].u, torch.is_grad_enabled()
        look = describer(u, wanted)
        tensors = inputs[0] if len(inputs) == 1 else itertools.chain(*inputs)
        described = [tensor if tensor is None else look(tensor) for tensor in tensors]
        is_dim_last = u.stride()[1:2] == (1,)  # a slice, for u may have too few axes
        key = (delta_softplus, direction, promote, wanted, is_dim_last, *described)
        bound = self._bound.get(key)
        return self._bind_scan(key, inputs, delta_softplus, direction, promote) if bound is None else bound

    def bound_to(self, key: object, pose: Callable[[], Problem]) -> Bound:
        """Return the function that serves inputs of one kind.

        Args:
            key: Hashable, of all that the problem is derived from.
            pose: () -> the problem; called where the key is new.

        Raises:
            ProblemError: As `pose` raises it.
            UnavailableError: No backend serves the problem.
        """
        bound = self._bound.get(key)
        return self._bind(key, pose(), False) if bound is None else bound

    @property
    def decided(self) -> dict[Problem, Decision]:
        """The problems built last and the decisions that serve them; at most settings.MAX_KEPT_SCANS."""
        with self._lock:
            return {problem: decision for problem, (_, decision) in self._built.items()}

    @property
    def decided_scans(self) -> dict[ScanProblem, Decision]:
        """The scans of `decided`."""
        return {problem: each for problem, each in self.decided.items() if isinstance(problem, ScanProblem)}

    @property
    def has_spoken(self) -> bool:
        """True once the backend of some problem was logged."""
        return bool(self._warned)

    def _bind_scan(
        self, key: object, given: tuple[ScanInputs, ...], delta_softplus: bool, direction: Direction, promote: bool
    ) -> Bound:
        inputs = tuple(map(promoted_scan, given)) if promote else given
        promotes = any(
            tensor is not before
            for one, other in zip(inputs, given, strict=True)
            for tensor, before in zip(one, other, strict=True)
        )
        if not inputs[0].u.numel():
            for each in inputs:
                check(each)
            return Bound(None, scan_empty, NOTHING_TO_SCAN, promotes)
        gradients = torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for each in inputs for tensor in each
        )
        problem = ScanProblem.of(*inputs, delta_softplus=delta_softplus, direction=direction, gradients=gradients)
        return self._bind(key, problem, promotes)

    def _bind(self, key: object, problem: Problem, promotes: bool) -> Bound:
        with self._lock:
            built = self._built.get(problem)
            if built is None:
                built = self._build(problem)
                keep(self._built, problem, built, settings.MAX_KEPT_SCANS)
            bound = Bound(problem, *built, promotes)
            keep(self._bound, key, bound, settings.MAX_KEPT_SCANS)
        return bound

    def _build(self, problem: Problem) -> tuple[OpFn, Decision]:
        if problem.device == "meta" and isinstance(problem, ScanProblem):
            return traced.on_meta(problem), ON_META
        named, profile = self._selection(problem.op)
        if named is not None:
            backend, config = named
            function = backend.build(problem, config)
            full = backend.space.complete(config, problem, backend.name)
            decision = Decision(backend.name, full, "named", f"{backend.name} was asked for by name")
            refusal = disagreement(problem, decision) if must_verify(problem, decision) else None
            if refusal is not None:
                raise RejectedError(f"{refusal}. Choose another backend, and please report this.")
            return function, decision
        failures = []
        for decision in decisions(problem, profile):
            refusal = disagreement(problem, decision) if must_verify(problem, decision) else None
            if refusal is not None:
                log.error("scanlab: refused: %s.", refusal)
                failures.append(refusal)
                continue
            try:
                function = registry.get(decision.backend).build(problem, decision.config)
            except (UnavailableError, RejectedError) as error:
                failures.append(str(error))
                continue
            self._announce(problem, decision, failures)
            return function, decision
        raise nothing_serves(problem, *failures)

    def _selection(self, op: str) -> tuple[tuple[Backend, Config] | None, Profile | None]:
        """Return the backend that is named for an op, if any, and the profile that it follows."""
        if self._named is not None and self._named[0].op == op:
            return self._named, None
        selection = TUNED if self._policy is None else self._policy.selection(op)
        if selection in (TUNED, DEFAULT):
            return None, self._profile if selection == TUNED else None
        named = registry.parse_selection(selection)
        return (named, None) if named[0].op == op else (None, self._profile)

    def _announce(self, problem: Problem, decision: Decision, failures: list[str]) -> None:
        stale = self._stale(problem, decision)
        if decision.basis == "exact" and not failures and stale is None:
            return
        if self._policy is not None and self._policy.selection(problem.op) == DEFAULT and not failures:
            return  # the untuned choice was asked for
        is_scan = problem.op == registry.DEFAULT_OP
        noun, op = ("scan", "") if is_scan else (problem.op, f" --op {problem.op}")
        reasons = "; ".join((*failures, *((stale,) if stale else ()), decision.reason))
        choice, why = f"{decision.backend} {config_key(decision.config)}", f"this {noun}: {reasons}"
        cure = f"to choose here, run `scanlab tune{op} --problem {problem.key}`."
        serves = f"{choice} serves {why}"
        message = f"{serves}; {cure}"
        if problem.op in PARTS and not failures and stale is None:
            log.info("scanlab: %s", message)  # the parts of a block are many, and none is slower than torch's own
            return
        if settings.strict():
            would_serve = f"{problem.key}: {choice} would serve {why}; {cure}"
            raise UnavailableError(f"{would_serve} ({settings.STRICT.name}=1 makes this an error.)")
        if serves not in self._warned:
            keep(self._warned, serves, None, settings.MAX_KEPT_WARNINGS)
            log.warning("scanlab: %s", message)

    def _stale(self, problem: Problem, decision: Decision) -> str | None:
        entry = None if self._profile is None else self._profile.exact(problem)
        if decision.basis != "exact" or entry is None:
            return None
        if entry.source_hash == registry.get(entry.backend).source_hash:
            return None
        return f"the source of {entry.backend} changed since it was tuned"


def call_logged(bound: Bound, *inputs: Any) -> Any:
    """Return the result of a bound function, and add the call to every log of usage."""
    start = time.perf_counter()
    result = bound.function(*inputs)
    if bound.problem is not None:
        for each in usage.active():
            each.add(bound.problem, time.perf_counter() - start)
    return result


def keep(kept: OrderedDict[Key, Value], key: Key, value: Value, most: int) -> None:
    """Store `value`, and drop the entries stored first beyond `most` of them."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)


_describe = operator.attrgetter("shape", "dtype", "device", "requires_grad")
# Where one tensor is on the CPU and the others must be: a device is another object at each look.
_describe_on_cpu = operator.attrgetter("shape", "dtype", "is_cpu", "requires_grad")
_describe_values_on_cpu = operator.attrgetter("shape", "dtype", "is_cpu")  # where no gradient is recorded


def describer(first: torch.Tensor, wanted: bool) -> Callable[[torch.Tensor], object]:
    """Return the function that describes the tensors of one call for a key; `wanted`: gradients are recorded."""
    if not first.is_cpu:
        return _describe
    return _describe_on_cpu if wanted else _describe_values_on_cpu
