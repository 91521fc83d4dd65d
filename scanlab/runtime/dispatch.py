"""Route a scan to the backend that was decided for it, and the drop-in `selective_scan_fn`.

A backend that the caller or $SCANLAB_BACKEND names serves; else see `decisions`. Whatever is not the tuned choice is
logged once, and with SCANLAB_STRICT=1 it is an error. The route of a call that was seen before is `selective_scan_fn`,
`Dispatcher.__call__` (one lookup), the scan that the backend built, and the op.
"""

from __future__ import annotations

import functools
import logging
import operator
import threading
import time
from collections import OrderedDict
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from scanlab import settings
from scanlab.contract import registry
from scanlab.contract.backend import Backend, OpFn, ScanFn
from scanlab.contract.problem import Direction, Problem, ScanInputs, ScanOutput, ScanProblem, check
from scanlab.contract.space import Config, config_key
from scanlab.errors import RejectedError, UnavailableError
from scanlab.runtime import implementations, products, traced, usage
from scanlab.runtime.decisions import Decision, decisions, nothing_serves
from scanlab.runtime.empty_scan import scan_empty
from scanlab.runtime.policy import DEFAULT, TUNED, Policy, current
from scanlab.runtime.profile import Profile, load_profile
from scanlab.runtime.verification import disagreement, must_verify

log = logging.getLogger("scanlab")

Key = TypeVar("Key")
Value = TypeVar("Value")


class Scan(Protocol):
    """A scan of any problem, as models call it."""

    def __call__(
        self, *inputs: ScanInputs, delta_softplus: bool = True, direction: Direction = "forward"
    ) -> ScanOutput: ...


class BoundScan(NamedTuple):
    """A scan built for one problem; `promotes` says that its inputs are to be promoted first.

    An empty scan has no problem.
    """

    problem: ScanProblem | None
    scan: ScanFn
    promotes: bool


class Dispatcher:
    """A Scan that serves each problem with the backend decided for it, built once and kept; `run` serves any op.

    At most settings.MAX_KEPT_SCANS are kept; the one unused for longest goes first. Safe to call from several threads
    and after a fork.

    Args:
        named: Backend that serves every problem of its op, such as "native" or "chunked:chunk=32"; overrides the
            profile.
        profile: Choices of this machine.
    """

    def __init__(self, named: str | None = None, profile: Profile | None = None) -> None:
        self._named: tuple[Backend, Config] | None = None if named is None else registry.parse_selection(named)
        self._profile = profile
        self._bound: OrderedDict[object, BoundScan] = OrderedDict()
        self._functions: OrderedDict[Problem, OpFn] = OrderedDict()
        self._decided: OrderedDict[Problem, Decision] = OrderedDict()
        self._warned: OrderedDict[str, None] = OrderedDict()
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
            promote: Promote mixed dtypes, see `promoted`.

        Raises:
            ProblemError: The tensors do not fit together.
        """
        bound = self.bind(inputs, delta_softplus, direction, promote)
        if bound.promotes:
            inputs = tuple(map(promoted, inputs))
        logs = usage.active()
        if not logs:
            return bound.scan(*inputs)
        start = time.perf_counter()
        result = bound.scan(*inputs)
        if bound.problem is not None:
            for each in logs:
                each.add(bound.problem, time.perf_counter() - start)
        return result

    def run(self, problem: Problem, *inputs: Any) -> Any:
        """Return the outputs of an op for these inputs, which pose `problem`.

        Args:
            problem: Of any op that is installed.
            inputs: As the op's backends take them.

        Raises:
            UnavailableError: No backend serves the problem.
        """
        try:
            function = self._functions[problem]
            self._functions.move_to_end(problem)
        except KeyError:
            with self._lock:
                function = self._build(problem)
                keep(self._functions, problem, function, settings.MAX_KEPT_SCANS)
        return function(*inputs)

    def bind(
        self, inputs: tuple[ScanInputs, ...], delta_softplus: bool, direction: Direction, promote: bool = False
    ) -> BoundScan:
        """Return the scan that serves such tensors; arguments and errors are those of a call."""
        key = (_signature(inputs), delta_softplus, direction, promote, torch.is_grad_enabled())
        try:
            bound = self._bound[key]
            self._bound.move_to_end(key)
        except KeyError:
            bound = self._build_for(key, inputs, delta_softplus, direction, promote)
        return bound

    @property
    def decided(self) -> dict[Problem, Decision]:
        """The problems seen last and the decisions that serve them; at most settings.MAX_KEPT_SCANS."""
        with self._lock:
            return dict(self._decided)

    @property
    def has_spoken(self) -> bool:
        """Whether it has logged which backend serves some problem."""
        return bool(self._warned)

    def _build_for(
        self, key: object, given: tuple[ScanInputs, ...], delta_softplus: bool, direction: Direction, promote: bool
    ) -> BoundScan:
        inputs = tuple(map(promoted, given)) if promote else given
        promotes = any(
            tensor is not before
            for one, other in zip(inputs, given, strict=True)
            for tensor, before in zip(one, other, strict=True)
        )
        if not inputs[0].u.numel():
            for each in inputs:
                check(each)
            return BoundScan(None, scan_empty, promotes)
        gradients = torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for each in inputs for tensor in each
        )
        problem = ScanProblem.of(*inputs, delta_softplus=delta_softplus, direction=direction, gradients=gradients)
        with self._lock:
            build = traced.on_meta if problem.device == "meta" else self._build
            bound = BoundScan(problem, build(problem), promotes)
            keep(self._bound, key, bound, settings.MAX_KEPT_SCANS)
        return bound

    def _build(self, problem: Problem) -> OpFn:
        if self._named is not None and self._named[0].op == problem.op:
            backend, config = self._named
            scan = backend.build(problem, config)
            full = backend.space.complete(config, problem, backend.name)
            named = Decision(backend.name, full, "named", f"{backend.name} was asked for by name")
            refusal = disagreement(problem, named) if must_verify(problem, named) else None
            if refusal is not None:
                raise RejectedError(f"{refusal}. Choose another backend, and please report this.")
            self._keep_decision(problem, named)
            return scan
        failures = []
        for decision in decisions(problem, self._profile):
            refusal = disagreement(problem, decision) if must_verify(problem, decision) else None
            if refusal is not None:
                log.error("scanlab: refused: %s.", refusal)
                failures.append(refusal)
                continue
            try:
                scan = registry.get(decision.backend).build(problem, decision.config)
            except (UnavailableError, RejectedError) as error:
                failures.append(str(error))
                continue
            self._announce(problem, decision, failures)
            self._keep_decision(problem, decision)
            return scan
        raise nothing_serves(problem, *failures)

    def _keep_decision(self, problem: Problem, decision: Decision) -> None:
        keep(self._decided, problem, decision, settings.MAX_KEPT_SCANS)

    def _announce(self, problem: Problem, decision: Decision, failures: list[str]) -> None:
        stale = self._stale(problem, decision)
        if decision.basis == "exact" and not failures and stale is None:
            return
        noun, op = ("scan", "") if problem.op == registry.DEFAULT_OP else (problem.op, f" --op {problem.op}")
        reasons = "; ".join((*failures, *((stale,) if stale else ()), decision.reason))
        serves = f"{decision.backend} {config_key(decision.config)} serves this {noun}: {reasons}"
        message = f"{serves}; to choose here, run `scanlab tune{op} --problem {problem.key}`."
        if settings.strict():
            raise UnavailableError(f"{problem.key}: {message} ({settings.STRICT.name}=1 makes this an error.)")
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


def keep(kept: OrderedDict[Key, Value], key: Key, value: Value, most: int) -> None:
    """Store `value`, and drop what was unused for longest beyond `most` entries."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)


_describe = operator.attrgetter("shape", "dtype", "device", "requires_grad")


def _signature(inputs: tuple[ScanInputs, ...]) -> tuple[object, ...]:
    """Return all that a problem is derived from, without building the problem."""
    layouts = [each.u.stride(1) == 1 for each in inputs]
    return *layouts, *[tensor if tensor is None else _describe(tensor) for each in inputs for tensor in each]


_dispatchers: dict[str | Policy | None, Dispatcher] = {}
_dispatchers_lock = threading.Lock()
_generation = 0  # how often everything was cleared


def dispatcher(named: str | Policy | None = None) -> Dispatcher:
    """Return the process's dispatcher for the backend called `named`, or for a policy.

    Without either it serves $SCANLAB_BACKEND where that is set, and else follows this machine's profile, which is read
    once, on first use.
    """
    with _dispatchers_lock:
        if named not in _dispatchers:
            _dispatchers[named] = _dispatcher_of(named) if isinstance(named, Policy) else _dispatcher_named(named)
        return _dispatchers[named]


def _dispatcher_named(named: str | None) -> Dispatcher:
    asked = named or settings.BACKEND.get()
    return Dispatcher(named=asked) if asked else Dispatcher(profile=load_profile())


def _dispatcher_of(policy: Policy) -> Dispatcher:
    selection = policy.selection(ScanProblem.op)
    if selection == TUNED:
        return Dispatcher(profile=load_profile() if policy.profile is None else Profile.load(policy.profile))
    return Dispatcher() if selection == DEFAULT else Dispatcher(named=selection)


def clear() -> None:
    """Drop everything built and decided, so that the profile and the environment are read again."""
    global _generation
    with _dispatchers_lock:
        _dispatchers.clear()
        _generation += 1
    implementations.clear()
    products.clear()


def scan(*inputs: ScanInputs, delta_softplus: bool = True, direction: Direction = "forward") -> ScanOutput:
    """Return the scan of these tensors by the machine's choice; the Scan that models use unless given another."""
    if traced.is_traced():
        return traced.scan(inputs, delta_softplus, direction)
    policy = current()
    serve = _dispatchers.get(policy) or dispatcher(policy)
    return serve(*inputs, delta_softplus=delta_softplus, direction=direction)


def input_kind(hidden: Tensor, asked: Scan) -> object | None:
    """Return a key of all that decides which ops serve a block of a model; None where a plan of them must not be kept.

    A plan may call the ops directly only where torch would do nothing but compute: it records no gradient, is not
    compiled, and runs without autocast.
    """
    if traced.is_traced():
        return None
    serve = serving(asked)
    if (
        serve is None
        or torch.is_grad_enabled()
        or type(hidden) is not Tensor
        or not hidden.is_cpu
        or torch.is_autocast_enabled("cpu")
        or implementations.is_in_torch()
        or usage.active()
    ):
        return None
    return hidden.shape, hidden.dtype, serve, _generation


def serving(asked: Scan) -> Dispatcher | None:
    """Return the dispatcher behind a Scan, or None where it is another callable."""
    if asked is scan:
        policy = current()
        return _dispatchers.get(policy) or dispatcher(policy)
    return asked if isinstance(asked, Dispatcher) else None


def explain() -> str:
    """Return which implementation served each problem and op in this process, and why; a line for each."""
    lines = [
        f"{problem.key}: {decision.backend} {config_key(decision.config)} ({decision.basis}: {decision.reason})"
        for each in list(_dispatchers.values())
        for problem, decision in each.decided.items()
    ]
    scans = "\n".join(lines) or "scanlab has not served a scan yet."
    threads = f"threads: {torch.get_num_threads()}, as torch.get_num_threads(), where a configuration names none"
    return "\n".join(filter(None, (scans, implementations.explain(), products.explain(), threads)))


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the selective scan, with the signature and semantics of mamba_ssm, on this machine's backend.

    Mixtures of dtypes are promoted to the widest, exactly, and the output is rounded once to the dtype of u.
    Differentiable in every tensor, last_state included.

    Args:
        u: (batch, dim, length) in float32, bfloat16, float16 or float64; integers count as float32.
        delta: Like u.
        A: (dim, state), float32 (float64 with float64); complex A goes with interleaved varying B and C.
        B: (batch, state, length), (batch, groups, state, length), or constant (dim, state).
        C: Like B.
        D: (dim,), float32 (float64 with float64).
        z: Like u.
        delta_bias: Like D.
        delta_softplus: Apply softplus to delta + delta_bias.
        return_last_state: Return the state after the last step too.
        backend: A backend ("native", "chunked:chunk=32") instead of the machine's choice.

    Returns:
        `out` (batch, dim, length), or (out, last_state (batch, dim, state)).

    Raises:
        ProblemError: The tensors do not fit together.
        ConfigError: The configuration in `backend` is not legal.
        UnknownBackendError: There is no such backend.
        UnavailableError: The backend cannot run here.
        RejectedError: The backend does not solve this problem.

    Source:
        state-spaces/mamba@e9594ce, selective_scan_interface.py, selective_scan_fn.
    """
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias)
    if traced.is_traced():
        out, last_state = traced.scan((inputs,), delta_softplus, "forward", True, backend)
    else:
        serve = _dispatchers.get(backend) or dispatcher(backend)
        out, last_state = serve(inputs, delta_softplus=delta_softplus, promote=True)
    if out.dtype != u.dtype:
        out = out.to(u.dtype)
    return (out, last_state) if return_last_state else out


def promoted(inputs: ScanInputs) -> ScanInputs:
    """Return these inputs in the dtypes that a ScanProblem asks for, exactly.

    Tensors that vary over time get the widest of their dtypes, integers counting as float32, the others the float32 or
    float64 that goes with it.
    """
    varying = ("u", "delta", "z", *(name for name in ("B", "C") if getattr(inputs, name).dim() > 2))
    tensors = inputs.tensors()
    dtype = functools.reduce(torch.promote_types, {tensors[name].dtype for name in varying if name in tensors})
    dtype = dtype if dtype.is_floating_point or dtype.is_complex else torch.float32
    weight = torch.float64 if dtype == torch.float64 else torch.float32

    def fit(name: str, tensor: Tensor) -> Tensor:
        to = dtype if name in varying else weight
        return tensor.to(to.to_complex() if tensor.is_complex() else to)

    return inputs.with_tensors(**{name: fit(name, tensor) for name, tensor in tensors.items()})


def _serve_graph(
    *inputs: ScanInputs, delta_softplus: bool, direction: Direction, promote: bool, backend: str | None
) -> ScanOutput:
    serve = dispatcher(current() if backend is None else backend)
    return serve(*inputs, delta_softplus=delta_softplus, direction=direction, promote=promote)


traced.register(_serve_graph, promoted)
