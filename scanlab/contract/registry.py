"""The installed ops and backends: entry points of `scanlab.ops` and `scanlab.backends`, loaded on demand."""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from scanlab.contract.backend import Backend
from scanlab.contract.base import Problem
from scanlab.contract.op import Op
from scanlab.contract.space import Value
from scanlab.errors import ConfigError, UnknownBackendError, did_you_mean

BACKENDS = "scanlab.backends"
OPS = "scanlab.ops"
# The op where none is named; records and profiles of scanlab 0.1 are all about it.
DEFAULT_OP = "selective_scan"

Entry = TypeVar("Entry", Backend, Op)


@functools.cache
def _installed(group: str) -> dict[str, tuple[EntryPoint, ...]]:
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=group):
        if point not in found.get(point.name, ()):
            found[point.name] = (*found.get(point.name, ()), point)
    return dict(sorted(found.items()))


def names() -> tuple[str, ...]:
    """Return the names of the installed backends, whether they load or not."""
    return tuple(_installed(BACKENDS))


def ops() -> tuple[str, ...]:
    """Return the names of the installed ops, whether they load or not."""
    return tuple(_installed(OPS))


@functools.cache
def op(name: str) -> Op:
    """Return the op called `name`.

    Raises:
        UnknownBackendError: There is none, or it fails to load.
    """
    return _load(OPS, "op", name, Op)


@functools.cache
def get(name: str) -> Backend:
    """Return the backend called `name`.

    Raises:
        UnknownBackendError: There is none, it fails to load, or the op that it implements is not installed.
    """
    backend = _load(BACKENDS, "backend", name, Backend)
    if backend.op not in ops():
        raise UnknownBackendError(
            f"backend {name!r} implements the op {backend.op!r}, which is not installed: installed are"
            f" {', '.join(ops()) or 'none'}."
        )
    return backend


def clear() -> None:
    """Clear the registry, so that the entry points are read again."""
    for cached in (_installed, op, get):
        cached.cache_clear()


def _load(group: str, noun: str, name: str, kind: type[Entry]) -> Entry:
    known = _installed(group)
    points = known.get(name, ())
    if not points:
        nearest = did_you_mean(name, known)
        installed = f". Installed are {', '.join(known) or 'none'}." if not nearest else f".{nearest}"
        raise UnknownBackendError(f"no {noun} is called {name!r}{installed}")
    if len(points) > 1:
        raise UnknownBackendError(
            f"{noun} {name!r} is registered by {' and '.join(point.value for point in points)}: uninstall one."
        )
    (point,) = points
    try:
        loaded = point.load()
    except Exception as error:  # any error of a plug-in becomes a reason
        raise UnknownBackendError(
            f"{noun} {name!r} ({point.value}) failed to load: {type(error).__name__}: {error}. Repair or uninstall it."
        ) from error
    if not isinstance(loaded, kind) or loaded.name != name:
        raise UnknownBackendError(
            f"{noun} {name!r} ({point.value}) is {loaded!r}: must be a scanlab {kind.__name__} whose name is {name!r}."
        )
    return loaded


def parse_problem(text: str, op_name: str = DEFAULT_OP) -> Problem:
    """Return the problem of an op that `text`, such as "batch=1,dim=384,length=197", describes.

    Raises:
        UnknownBackendError: The op is not installed.
        ProblemError: The text is not a problem of it.
    """
    return op(op_name).problem.parse(text)


def simplest(op_name: str) -> Backend:
    """Return the backend of an op with the lowest rank.

    Raises:
        UnknownBackendError: There is none.
    """
    backends, failures = load_all(op_name)
    if not backends:
        raise UnknownBackendError("; ".join((f"no backend of the op {op_name!r} is installed", *failures.values())))
    return backends[0]


def load_all(op: str | None = None) -> tuple[tuple[Backend, ...], dict[str, str]]:
    """Return every backend that loads, simplest first within each op, and by name the reason why one does not.

    Args:
        op: Only the backends of this op; those of every op by default.
    """
    loaded, failures = [], {}
    for name in names():
        try:
            backend = get(name)
            if op in (None, backend.op):
                loaded.append(backend)
        except UnknownBackendError as error:
            failures[name] = str(error)
    order = sorted(loaded, key=lambda backend: (backend.op != DEFAULT_OP, backend.op, backend.rank, backend.name))
    return tuple(order), failures


def parse_selection(text: str) -> tuple[Backend, dict[str, Value]]:
    """Return the backend and the (partial) configuration that `text` names, such as "chunked:chunk=32,threads=1"."""
    if not isinstance(text, str):
        raise ConfigError(f"{text!r}: must name a backend, such as 'native' or 'chunked:chunk=32'.")
    name, _, settings = text.partition(":")
    backend = get(name.strip())
    choices = {choice.name: choice for choice in backend.space.tunables}
    see = f"see `scanlab list {backend.name}`"
    config: dict[str, Value] = {}
    for part in filter(None, (part.strip() for part in settings.split(","))):
        tunable, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator or tunable not in choices:
            takes = ", ".join(choices) or "none"
            near = did_you_mean(tunable, choices)
            raise ConfigError(f"{part!r} in {text!r}: must be tunable=value with a tunable of {takes}; {see}.{near}")
        spelled = {str(legal).lower(): legal for legal in choices[tunable].legal}
        if value.lower() not in spelled:
            near = did_you_mean(value.lower(), spelled)
            raise ConfigError(f"{tunable}={value} in {text!r}: must be one of {', '.join(spelled)}; {see}.{near}")
        if tunable in config:
            raise ConfigError(f"{text!r} names {tunable} twice: name it once; {see}.")
        config[tunable] = spelled[value.lower()]
    return backend, config
