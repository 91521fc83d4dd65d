"""Which backend serves a problem, and the drop-in `selective_scan_fn` that follows the choice.

In this order: a backend that the caller or $SCANLAB_BACKEND names; the profile's entry for exactly this
problem, from this kind of machine or adopted from its kin; its entry for the nearest problem of the same kind;
what was fastest on the most alike problem that was measured elsewhere (see `heuristics`); the fallback, the first
of FALLBACKS that is available and accepts the problem. Whatever is not the profiled choice is said once in the log,
and with $SCANLAB_STRICT=1 it is an error.
"""

from __future__ import annotations

import functools
import itertools
import logging
import operator
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from scanlab.contract import registry
from scanlab.contract.backend import Backend, ScanFn
from scanlab.contract.problem import Direction, ScanInputs, ScanOutput, ScanProblem
from scanlab.contract.space import Config, config_key
from scanlab.errors import ConfigError, RejectedError, UnavailableError, UnknownBackendError
from scanlab.runtime import usage as record
from scanlab.runtime.defaults import most_alike
from scanlab.runtime.profile import Profile, ProfileEntry, load_profile

log = logging.getLogger("scanlab")

ENV_BACKEND = "SCANLAB_BACKEND"
ENV_STRICT = "SCANLAB_STRICT"

# Where nothing was tuned and nothing alike was measured: the first that is available and accepts. `compiled` is not
# here because it compiles for every new shape, which a caller did not ask for.
FALLBACKS = ("triton", "native", "chunked", "reference")


class Scan(Protocol):
    """A scan for any problem, as models call it: it finds or builds what fits the tensors it is given."""

    def __call__(
        self, *inputs: ScanInputs, delta_softplus: bool = True, direction: Direction = "forward"
    ) -> ScanOutput: ...


@dataclass(frozen=True)
class Decision:
    """Which backend and configuration serve a problem, and on what basis."""

    backend: str
    config: Config
    basis: Literal["named", "exact", "kin", "nearest", "heuristic", "fallback"]
    reason: str


def decisions(problem: ScanProblem, profile: Profile | None) -> Iterator[Decision]:
    """The decisions for `problem` from best to last resort; those that would be refused are left out."""
    passed_over: list[str] = []
    for entry in () if profile is None else profile.nearest(problem):
        refusal = refuses(entry.backend, entry.config, problem)
        if refusal is not None:
            passed_over.append(f"what was tuned for {entry.problem.key} cannot serve: {refusal}")
        elif entry.problem == problem:
            basis: Literal["exact", "kin"] = "exact" if entry.adopted_from is None else "kin"
            yield Decision(entry.backend, entry.config, basis, f"tuned for exactly {problem.key}{_where(entry)}")
        else:
            reason = f"tuned for the nearest problem {entry.problem.key}{_where(entry)}"
            yield Decision(entry.backend, entry.config, "nearest", "; ".join((reason, *passed_over)))
    untuned = "; ".join(passed_over) or "nothing was tuned for this kind of problem here"
    yield from _measured_elsewhere(problem, untuned)
    refused: list[str] = []
    for name in FALLBACKS:
        refusal = refuses(name, {}, problem)
        if refusal is None:
            why = f"{untuned}; run `scanlab tune`"
            yield Decision(name, registry.get(name).space.defaults, "fallback", "; ".join((why, *refused)))
        else:
            refused.append(refusal)


def _measured_elsewhere(problem: ScanProblem, untuned: str) -> Iterator[Decision]:
    """The standings of the most alike problem that was measured anywhere; what would be refused is a reason.

    untuned  why nothing that was tuned here serves
    """
    for alike in itertools.islice(most_alike(problem), 1):
        refused: list[str] = []
        for standing in alike.standings:
            defaults = registry.get(standing.backend).space.defaults
            refusals = {
                config_key(each): refuses(standing.backend, each, problem) for each in (standing.config, defaults)
            }
            config = next((each for each in (standing.config, defaults) if refusals[config_key(each)] is None), None)
            if config is None:
                refused.append(str(refusals[config_key(defaults)]))
                continue
            faster = f"it was {standing.speedup:.3g} times as fast as the reference loop on {alike.problem.key}"
            why = f"{untuned}; {faster} on {alike.where}; run `scanlab tune`"
            yield Decision(standing.backend, config, "heuristic", "; ".join((why, *refused)))


def decide(problem: ScanProblem, profile: Profile | None) -> Decision:
    """The best decision for `problem`; raises UnavailableError where no backend can serve it."""
    for decision in decisions(problem, profile):
        return decision
    reasons = "; ".join(filter(None, (refuses(name, {}, problem) for name in FALLBACKS)))
    raise UnavailableError(f"no backend serves {problem.key}: {reasons}. See `scanlab list`.")


def _where(entry: ProfileEntry) -> str:
    """Where a choice was made that was not made on this kind of machine."""
    return (
        ""
        if entry.adopted_from is None
        else f" on its nearest machine, {entry.adopted_from}; run `scanlab tune` to choose here"
    )


def refuses(name: str, config: Config, problem: ScanProblem) -> str | None:
    """Why the backend called `name` cannot serve `problem` under `config` unless it is asked to, or None."""
    try:
        backend = registry.get(name)
        backend.space.complete(config, problem, name)
    except (UnknownBackendError, ConfigError) as error:
        return str(error)
    reason = backend.rejects(problem) or backend.unavailable()
    if backend.explicit_only:
        reason = reason or "here it serves only who asks for it by name"
    return None if reason is None else f"{name}: {reason}"


class Dispatcher:
    """A Scan that serves each problem with the backend decided for it, built once and kept.

    `named` ("native" or "chunked:chunk=32") overrides the profile. Safe to call from several threads.
    """

    def __init__(self, named: str | None = None, profile: Profile | None = None) -> None:
        self._named: tuple[Backend, Config] | None = None if named is None else registry.parse_selection(named)
        self._profile = profile
        self._built: dict[object, tuple[ScanProblem, ScanFn]] = {}
        self._decided: dict[ScanProblem, Decision] = {}
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def __call__(
        self, *inputs: ScanInputs, delta_softplus: bool = True, direction: Direction = "forward"
    ) -> ScanOutput:
        """The scan of these tensors; raises ProblemError where they do not fit together."""
        gradients = torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for each in inputs for tensor in each
        )
        signature = (_signature(inputs), delta_softplus, direction, gradients)
        built = self._built.get(signature)
        if built is None:
            problem = ScanProblem.of(*inputs, delta_softplus=delta_softplus, direction=direction, gradients=gradients)
            with self._lock:
                built = self._built[signature] = (problem, self._build(problem))
        recordings = record.active()
        if not recordings:
            return built[1](*inputs)
        start = time.perf_counter()
        result = built[1](*inputs)
        for recording in recordings:
            recording.add(built[0], time.perf_counter() - start)
        return result

    @property
    def decided(self) -> dict[ScanProblem, Decision]:
        """Every problem seen so far and the decision that serves it."""
        return dict(self._decided)

    @property
    def has_spoken(self) -> bool:
        """Whether it said of any problem who serves it."""
        return bool(self._said)

    def _build(self, problem: ScanProblem) -> ScanFn:
        if self._named is not None:
            backend, config = self._named
            scan = backend.build(problem, config)
            full = backend.space.complete(config, problem, backend.name)
            self._decided[problem] = Decision(backend.name, full, "named", f"{backend.name} was asked for by name")
            return scan
        failures = []
        for decision in decisions(problem, self._profile):
            try:
                scan = registry.get(decision.backend).build(problem, decision.config)
            except (UnavailableError, RejectedError) as error:
                failures.append(str(error))
                continue
            self._announce(problem, decision, failures)
            self._decided[problem] = decision
            return scan
        decide(problem, self._profile)  # raises with the reasons of every backend
        raise UnavailableError(f"no backend serves {problem.key}: {'; '.join(failures)}")

    def _announce(self, problem: ScanProblem, decision: Decision, failures: list[str]) -> None:
        stale = self._stale(problem, decision)
        if decision.basis == "exact" and not failures and stale is None:
            return
        reasons = "; ".join((*failures, *((stale,) if stale else ()), decision.reason))
        message = f"{decision.backend} {config_key(decision.config)} serves this scan: {reasons}."
        if os.environ.get(ENV_STRICT) == "1":
            raise UnavailableError(f"{problem.key}: {message} ({ENV_STRICT}=1 makes this an error.)")
        if message not in self._said:
            self._said.add(message)
            log.warning("scanlab: %s", message)

    def _stale(self, problem: ScanProblem, decision: Decision) -> str | None:
        entry = None if self._profile is None else self._profile.exact(problem)
        if decision.basis != "exact" or entry is None:
            return None
        if entry.source_hash == registry.get(entry.backend).source_hash:
            return None
        return f"the source of {entry.backend} changed since it was tuned; run `scanlab tune` again"


_described = operator.attrgetter("shape", "dtype", "device")


def _signature(inputs: tuple[ScanInputs, ...]) -> tuple[object, ...]:
    """All of the tensors that the problem depends on, read without building the problem."""
    layouts = [each.u.stride(1) == 1 for each in inputs]
    return *layouts, *[tensor if tensor is None else _described(tensor) for each in inputs for tensor in each]


_dispatchers: dict[str | None, Dispatcher] = {}
_dispatchers_lock = threading.Lock()


def dispatcher(named: str | None = None) -> Dispatcher:
    """The process's dispatcher for the backend called `named`; without a name for $SCANLAB_BACKEND where it is
    set, and else for this machine's profile, which is read once, on first use."""
    with _dispatchers_lock:
        if named not in _dispatchers:
            asked = named or os.environ.get(ENV_BACKEND)
            _dispatchers[named] = Dispatcher(named=asked) if asked else Dispatcher(profile=load_profile())
        return _dispatchers[named]


def forget_dispatchers() -> None:
    """Drop what was built and decided, so that the profile and the environment are read again."""
    with _dispatchers_lock:
        _dispatchers.clear()


def scan(*inputs: ScanInputs, delta_softplus: bool = True, direction: Direction = "forward") -> ScanOutput:
    """The machine's choice as a Scan; what models use unless they are given another."""
    return dispatcher()(*inputs, delta_softplus=delta_softplus, direction=direction)


def explain() -> str:
    """Which backend served which problem so far in this process, and why; one line for each problem."""
    lines = [
        f"{problem.key}: {decision.backend} {config_key(decision.config)} ({decision.basis}: {decision.reason})"
        for each in _dispatchers.values()
        for problem, decision in each.decided.items()
    ]
    return "\n".join(lines) or "scanlab has not served a scan yet."


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
    """The selective scan with the signature and semantics of mamba_ssm, on the backend chosen for this machine.

    u, delta, z (batch, dim, length) and varying B, C in float32, bfloat16, float16 or float64; A (dim, state),
    D and delta_bias (dim,) in float32 (float64 with float64); B, C (batch, state, length), (batch, groups,
    state, length) or constant (dim, state); with a complex A varying B and C are interleaved. Other mixtures
    of dtypes are promoted to the widest, exactly, and the output is rounded once to the dtype of u. Returns
    `out` (batch, dim, length), or (out, last_state (batch, dim, state)). `backend` ("native",
    "chunked:chunk=32") overrides the profile. Differentiable in every tensor, last_state included.

    Raises ProblemError, ConfigError, UnknownBackendError, UnavailableError or RejectedError.
    Source: state-spaces/mamba@e9594ce, selective_scan_interface.py, selective_scan_fn.
    """
    inputs = promoted(ScanInputs(u, delta, A, B, C, D, z, delta_bias))
    out, last_state = dispatcher(backend)(inputs, delta_softplus=delta_softplus)
    out = out.to(u.dtype)
    return (out, last_state) if return_last_state else out


def promoted(inputs: ScanInputs) -> ScanInputs:
    """These inputs with what varies over time in the widest of its dtypes, and the rest in the float32 or float64
    that goes with it: exact, and what a ScanProblem asks for."""
    varying = ("u", "delta", "z", *(name for name in ("B", "C") if getattr(inputs, name).dim() > 2))
    tensors = inputs.tensors()
    dtype = functools.reduce(torch.promote_types, {tensors[name].dtype for name in varying if name in tensors})
    weight = torch.float64 if dtype == torch.float64 else torch.float32

    def fit(name: str, tensor: Tensor) -> Tensor:
        to = dtype if name in varying else weight
        return tensor.to(to.to_complex() if tensor.is_complex() else to)

    return inputs.with_tensors(**{name: fit(name, tensor) for name, tensor in tensors.items()})
