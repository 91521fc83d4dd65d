"""The legal configurations of a backend: tunables, their defaults, and the combinations that are forbidden."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from scanlab.contract.base import Problem
from scanlab.errors import ConfigError, did_you_mean

Value = int | float | str | bool
Config = Mapping[str, Value]


def config_key(config: Config) -> str:
    """Return the canonical text of a configuration, for records and comparisons."""
    return json.dumps(dict(sorted(config.items())), separators=(",", ":"))


@dataclass(frozen=True)
class Tunable:
    """A tunable of a backend.

    Args:
        name: Name in a configuration.
        values: The values that a search tries, in their natural order.
        default: One of `values`.
        summary: Effect, in a line.
        also_legal: Further values that a caller may name and no search tries.
    """

    name: str
    values: tuple[Value, ...]
    default: Value
    summary: str = ""
    also_legal: tuple[Value, ...] = ()

    @property
    def legal(self) -> tuple[Value, ...]:
        """Every value that a configuration may have."""
        return (*self.values, *self.also_legal)

    def __post_init__(self) -> None:
        if self.default not in self.values:
            raise ConfigError(f"{self.name}: default {self.default!r} is not one of its values {self.values}.")
        if len(set(self.legal)) != len(self.legal):
            raise ConfigError(f"{self.name}: values {self.legal} repeat; each may stand once.")


def everything_allowed(config: Config, problem: Problem) -> str | None:
    """Return None: the default of a space in which every combination of values is legal."""
    return None


@dataclass(frozen=True)
class Space:
    """The configurations of a backend.

    Args:
        tunables: Their values and defaults; the defaults must be legal for every problem.
        forbids: (complete configuration, problem) -> None if it is legal for the problem, else the reason why not.
        renamed: Names of tunables by their former names, which older profiles hold.
    """

    tunables: tuple[Tunable, ...] = ()
    forbids: Callable[[Config, Any], str | None] = field(default=everything_allowed)
    renamed: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        names = [choice.name for choice in self.tunables]
        if len(set(names)) != len(names):
            raise ConfigError(f"tunables {names} repeat a name; each may stand once.")

    @property
    def defaults(self) -> dict[str, Value]:
        """Every tunable at its default."""
        return {choice.name: choice.default for choice in self.tunables}

    def num_nondefault(self, config: Config) -> int:
        """Return the number of tunables whose value in a complete `config` is not the default."""
        return sum(config[name] != default for name, default in self.defaults.items())

    def complete(self, config: Config, problem: Problem, backend: str) -> dict[str, Value]:
        """Return `config` with its missing tunables at their defaults. No value is clamped.

        Args:
            config: Values by the name of the tunable.
            problem: The problem that the configuration must be legal for.
            backend: Name of the backend, for the error.

        Raises:
            ConfigError: The configuration is not legal for `problem`.
        """
        cure = f"see `scanlab list {backend}`"
        known = {choice.name: choice for choice in self.tunables}
        config = {self.renamed.get(name, name): value for name, value in config.items()}
        for name, value in config.items():
            if name not in known:
                takes = ", ".join(known) or "no tunables"
                raise ConfigError(
                    f"{backend}: no tunable {name!r}: it takes {takes}; {cure}.{did_you_mean(name, known)}"
                )
            values = known[name].legal
            if not any(value == legal and type(value) is type(legal) for legal in values):
                raise ConfigError(f"{backend}: {name}={value!r}: must be one of {values}; {cure}.")
        full = self.defaults | config
        reason = self.forbids(full, problem)
        if reason is not None:
            raise ConfigError(f"{backend}: {config_key(full)} is not legal for {problem.key}: {reason}; {cure}.")
        return full

    def configs(self, problem: Problem) -> Iterator[dict[str, Value]]:
        """Yield every legal configuration, the defaults first, then in the order of the values."""
        yield self.defaults
        for values in itertools.product(*(choice.values for choice in self.tunables)):
            config = dict(zip((choice.name for choice in self.tunables), values, strict=True))
            if config != self.defaults and self.forbids(config, problem) is None:
                yield config

    def one_at_a_time(self, problem: Problem, around: Config | None = None) -> Iterator[dict[str, Value]]:
        """Yield `around`, by default the defaults, and each legal configuration that differs from it in one tunable."""
        middle = self.defaults | dict(around or {})
        if self.forbids(middle, problem) is None:
            yield middle
        for choice in self.tunables:
            for value in choice.values:
                config = middle | {choice.name: value}
                if value != middle[choice.name] and self.forbids(config, problem) is None:
                    yield config
