"""Decide which backend serves a problem, and why.

In this order: $SCANLAB_LINEAR or $SCANLAB_MIXER for the parts of a block; the profile's entry for exactly
this problem, measured on this kind of machine or adopted from the nearest one; its entry for the nearest problem of the
same family; the fastest on the most similar problem among the defaults that ship; the first of `fallbacks` that is
available and accepts the problem.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from scanlab import settings
from scanlab.contract import registry
from scanlab.contract.base import Problem
from scanlab.contract.space import Config, config_key
from scanlab.errors import ConfigError, UnavailableError, UnknownBackendError, did_you_mean
from scanlab.runtime.defaults import most_similar
from scanlab.runtime.implementations import implementation
from scanlab.runtime.profile import Profile, ProfileEntry

# Ops of a Mamba block around its scan; those of IMPLEMENTED have an implementation for each kind of device.
IMPLEMENTED = ("causal_conv1d", "add_norm", "state_update")
PARTS = ("linear", "mamba_front", *IMPLEMENTED)

Basis = Literal["named", "exact", "adopted", "nearest", "default", "fallback"]


@dataclass(frozen=True)
class Decision:
    """Backend and configuration that serve a problem, on what basis, and the reason in words."""

    backend: str
    config: Config
    basis: Basis
    reason: str


def decisions(problem: Problem, profile: Profile | None) -> Iterator[Decision]:
    """Yield the decisions for `problem` from best to last resort; those that would be refused are left out."""
    named, passed_over = _named(problem)
    if named is not None:
        yield named
        profile = None
    for entry in () if profile is None else profile.nearest(problem):
        refusal = refuses(entry.backend, entry.config, problem)
        if refusal is not None:
            passed_over.append(f"the choice for {entry.problem.key} cannot serve: {refusal}")
        elif entry.problem == problem:
            basis: Basis = "exact" if entry.adopted_from is None else "adopted"
            yield Decision(entry.backend, entry.config, basis, f"tuned for exactly {problem.key}{_where(entry)}")
        else:
            reason = f"tuned for the nearest problem {entry.problem.key}{_where(entry)}"
            yield Decision(entry.backend, entry.config, "nearest", "; ".join((reason, *passed_over)))
    untuned = "; ".join(passed_over) or "nothing near this problem was tuned here"
    if named is None:
        yield from _defaults(problem, untuned)
    refused: list[str] = []
    for name in fallbacks(problem):
        refusal = refuses(name, {}, problem)
        if refusal is None:
            yield Decision(name, registry.get(name).space.defaults, "fallback", "; ".join((untuned, *refused)))
        else:
            refused.append(refusal)


def _named(problem: Problem) -> tuple[Decision | None, list[str]]:
    """Return the decision that the environment makes for a part of a block, or why it cannot.

    Raises:
        ConfigError: The environment names no implementation.
    """
    if problem.op == "mamba_front" and (settings.LINEAR.get() or settings.MIXER.get() == "torch"):
        name, why = "mamba_front_composed", "the environment names its parts"
    elif problem.op == "linear" and settings.LINEAR.get():
        name, why = f"linear_{settings.LINEAR.get()}", f"{settings.LINEAR.name}={settings.LINEAR.get()}"
        if name not in registry.names():
            legal = [each.removeprefix("linear_") for each in registry.names() if each.startswith("linear_")]
            near = did_you_mean(str(settings.LINEAR.get()), legal)
            raise ConfigError(f"{why}: must be one of {', '.join(legal)}; unset it to choose.{near}")
    elif problem.op in IMPLEMENTED and settings.MIXER.get():
        name = f"{problem.op}_{implementation(problem.device, problem.dtype == 'float64')}"
        why = f"{settings.MIXER.name}={settings.MIXER.get()}"
    else:
        return None, []
    refusal = refuses(name, {}, problem, asked=True)
    if refusal is not None:
        return None, [f"{why} cannot serve: {refusal}"]
    return Decision(name, registry.get(name).space.defaults, "named", why), []


def _defaults(problem: Problem, untuned: str) -> Iterator[Decision]:
    """Yield the backends measured on the most similar problem that ships; a refused one is named as a reason.

    Args:
        problem: The problem to serve.
        untuned: Reason why no entry of the profile serves.
    """
    for similar in itertools.islice(most_similar(problem), 1):
        refused: list[str] = []
        for entry in similar.entries:
            defaults = registry.get(entry.backend).space.defaults
            refusals = {config_key(each): refuses(entry.backend, each, problem) for each in (entry.config, defaults)}
            config = next((each for each in (entry.config, defaults) if refusals[config_key(each)] is None), None)
            if config is None:
                refused.append(str(refusals[config_key(defaults)]))
                continue
            other = "the reference loop" if problem.op == registry.DEFAULT_OP else "torch's own op"
            faster = f"it was {entry.speedup:.3g} times as fast as {other} on {similar.problem.key}"
            reasons = (untuned, f"{faster} on {similar.where}", *refused)
            yield Decision(entry.backend, config, "default", "; ".join(reasons))


def fallbacks(problem: Problem) -> tuple[str, ...]:
    """Return the backends that serve `problem` where nothing was measured, the preferred one first."""
    if problem.op in IMPLEMENTED:
        found = implementation(problem.device, problem.dtype == "float64")
        return tuple(dict.fromkeys((f"{problem.op}_{found}", f"{problem.op}_torch")))
    return registry.op(problem.op).fallbacks or tuple(each.name for each in registry.load_all(problem.op)[0])


def decide(problem: Problem, profile: Profile | None) -> Decision:
    """Return the best decision for `problem`.

    Raises:
        UnavailableError: No backend can serve it.
    """
    for decision in decisions(problem, profile):
        return decision
    raise nothing_serves(problem)


def nothing_serves(problem: Problem, *failures: str) -> UnavailableError:
    """Return the error for a problem that no backend serves, with the reason of each."""
    reasons = (*failures, *filter(None, (refuses(name, {}, problem) for name in fallbacks(problem))))
    return UnavailableError(f"no backend serves {problem.key}: {'; '.join(reasons)}. See `scanlab list`.")


def _where(entry: ProfileEntry) -> str:
    """Return where an entry was measured, if that was not on this kind of machine."""
    return "" if entry.adopted_from is None else f" on the nearest machine, {entry.adopted_from}"


def refuses(name: str, config: Config, problem: Problem, *, asked: bool = False) -> str | None:
    """Return why the backend called `name` cannot serve `problem` under `config`, or None.

    Args:
        name: Name of the backend.
        config: Its configuration; missing tunables take their defaults.
        problem: The problem.
        asked: Whether it was asked for by name.
    """
    try:
        backend = registry.get(name)
        backend.space.complete(config, problem, name)
    except (UnknownBackendError, ConfigError) as error:
        return str(error)
    reason = backend.rejects(problem) or backend.unavailable()
    if backend.explicit_only and not asked:
        reason = reason or "here it serves only by name"
    return None if reason is None else f"{name}: {reason.rstrip('.')}"
