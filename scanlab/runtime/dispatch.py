"""The dispatchers of a process, the scan of its models, and the drop-in `selective_scan_fn`.

The route of a call that was seen before is `selective_scan_fn`, `Dispatcher.scan` (one lookup), the scan that the
backend built, and the op.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Protocol

import torch
from torch import Tensor

from scanlab import settings
from scanlab.contract import registry
from scanlab.contract.base import Problem
from scanlab.contract.freed_memory import keep_freed_memory
from scanlab.contract.problem import Direction, ScanInputs, ScanOutput
from scanlab.contract.space import config_key
from scanlab.errors import ConfigError
from scanlab.runtime import implementations, traced, usage
from scanlab.runtime.decisions import Decision
from scanlab.runtime.dispatcher import ON_META
from scanlab.runtime.dispatcher import Dispatcher as Dispatcher
from scanlab.runtime.policy import Policy, current
from scanlab.runtime.posed import expect_posed
from scanlab.runtime.profile import Profile, load_profile


class Scan(Protocol):
    """A scan of any problem, as models call it."""

    def __call__(
        self, *inputs: ScanInputs, delta_softplus: bool = True, direction: Direction = "forward"
    ) -> ScanOutput: ...


_dispatchers: dict[str | Policy | None, Dispatcher] = {}
_dispatchers_lock = threading.Lock()
_generation = 0  # how often everything was cleared


def _renew_locks() -> None:
    """Replace the locks in the child of a fork, where the threads that held them do not exist."""
    global _dispatchers_lock
    _dispatchers_lock = threading.Lock()
    for each in _dispatchers.values():
        each.renew_lock()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
    os.register_at_fork(after_in_child=_renew_locks)


def dispatcher(named: str | Policy | None = None) -> Dispatcher:
    """Return the process's dispatcher for the backend called `named`, or for a policy.

    Without either it serves $SCANLAB_BACKEND where that is set, and else follows this machine's profile, which is read
    once, on first use.
    """
    with _dispatchers_lock:
        if named not in _dispatchers:
            keep_freed_memory()
            _dispatchers[named] = _dispatcher_of(named) if isinstance(named, Policy) else _dispatcher_named(named)
        return _dispatchers[named]


def scan_dispatcher(named: str) -> Dispatcher:
    """Return the process's dispatcher for the backend of scans called `named`.

    Raises:
        ConfigError: The backend implements another op.
    """
    backend, _ = registry.parse_selection(named)
    if backend.op != registry.DEFAULT_OP:
        raise ConfigError(
            f"backend {named!r} implements {backend.op}, not {registry.DEFAULT_OP}: `scanlab list` shows those that do."
        )
    return dispatcher(named)


def _dispatcher_named(named: str | None) -> Dispatcher:
    asked = named or settings.BACKEND.get()
    return Dispatcher(named=asked) if asked else Dispatcher(profile=load_profile())


def _dispatcher_of(policy: Policy) -> Dispatcher:
    if not policy.follows_profile:
        return Dispatcher(policy=policy)
    profile = load_profile() if policy.profile is None else Profile.load(policy.profile)
    return Dispatcher(profile=profile, policy=policy)


def serving_now() -> Dispatcher:
    """Return the dispatcher of the policy in force, or of the process where none is."""
    policy = current()
    return _dispatchers.get(policy) or dispatcher(policy)


def serve(problem: Problem, *inputs: Any) -> Any:
    """Return the outputs of any installed op, by this machine's choice.

    Args:
        problem: Problem that the inputs pose.
        inputs: Inputs as the op's backends take them.

    Raises:
        ProblemError: The inputs pose another problem.
        UnavailableError: No backend serves the problem.
    """
    expect_posed(problem, inputs)
    return serving_now().run(problem, *inputs)


def clear() -> None:
    """Drop everything built and decided, so that the profile and the environment are read again."""
    global _generation
    with _dispatchers_lock:
        _dispatchers.clear()
        _generation += 1
    implementations.clear()


def scan(*inputs: ScanInputs, delta_softplus: bool = True, direction: Direction = "forward") -> ScanOutput:
    """Return the scan of these tensors by the machine's choice; the Scan that models use unless given another."""
    if traced.is_traced():
        return traced.scan(inputs, delta_softplus, direction)
    return serving_now()(*inputs, delta_softplus=delta_softplus, direction=direction)


def input_kind(hidden: Tensor, asked: Scan) -> object | None:
    """Return a key of all that decides which ops serve a block of a model; None if a plan of them must not be kept.

    A plan may call the ops directly only if torch would do nothing but compute: it records no gradient, is not
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
    return hidden.shape, hidden.dtype, serve, serving_now(), _generation


def serving(asked: Scan) -> Dispatcher | None:
    """Return the dispatcher behind a Scan, or None if it is another callable."""
    if asked is scan:
        return serving_now()
    return asked if isinstance(asked, Dispatcher) else None


def explain() -> str:
    """Return which implementation served each problem and op in this process, and why; a line for each."""
    lines = [
        _line(problem, decision) for each in list(_dispatchers.values()) for problem, decision in each.decided.items()
    ]
    served = "\n".join(lines) or "scanlab has not served a scan yet."
    threads = f"threads: {torch.get_num_threads()}, as torch.get_num_threads(), where nothing else is said"
    return "\n".join(filter(None, (served, implementations.explain(), threads)))


def _line(problem: Problem, decision: Decision) -> str:
    """Return the line of `explain` about one problem."""
    op = "" if problem.op == registry.DEFAULT_OP else f"{problem.op} "
    reasons = [f"{decision.basis}: {decision.reason}"]
    if decision is not ON_META:
        backend = registry.get(decision.backend)
        reasons.append(backend.note(problem, backend.space.complete(decision.config, problem, backend.name)) or "")
    said = "; ".join(filter(None, reasons))
    return f"{op}{problem.key}: {decision.backend} {config_key(decision.config)} ({said})"


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
        ConfigError: The configuration in `backend` is not legal, or it implements another op.
        UnknownBackendError: There is no such backend.
        UnavailableError: The backend cannot run here.
        RejectedError: The backend does not solve this problem.

    Example:
        >>> u, delta = torch.randn(2, 1, 8, 20)
        >>> A, B, C = -torch.rand(8, 4), torch.randn(1, 4, 20), torch.randn(1, 4, 20)
        >>> selective_scan_fn(u, delta, A, B, C, delta_softplus=True).shape
        torch.Size([1, 8, 20])

    Source:
        state-spaces/mamba@e9594ce, selective_scan_interface.py, selective_scan_fn.
    """
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias)
    if traced.is_traced():
        out, last_state = traced.scan((inputs,), delta_softplus, "forward", True, backend)
    else:
        serve = serving_now() if backend is None else _dispatchers.get(backend) or scan_dispatcher(backend)
        out, last_state = serve.scan((inputs,), delta_softplus, "forward", True)
    if out.dtype != u.dtype:
        out = out.to(u.dtype)
    return (out, last_state) if return_last_state else out


def _serve_graph(
    *inputs: ScanInputs, delta_softplus: bool, direction: Direction, promote: bool, backend: str | None
) -> ScanOutput:
    serve = dispatcher(current() if backend is None else backend)
    return serve(*inputs, delta_softplus=delta_softplus, direction=direction, promote=promote)


traced.register(_serve_graph)
