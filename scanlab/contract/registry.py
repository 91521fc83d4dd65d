"""The backends that are installed: entry points of the group `scanlab.backends`, loaded one by one on demand."""

from __future__ import annotations

import difflib
import functools
from importlib.metadata import EntryPoint, entry_points

from scanlab.contract.backend import Backend
from scanlab.contract.space import Value
from scanlab.errors import ConfigError, UnknownBackendError

GROUP = "scanlab.backends"


@functools.cache
def _installed() -> dict[str, tuple[EntryPoint, ...]]:
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=GROUP):
        if point not in found.get(point.name, ()):
            found[point.name] = (*found.get(point.name, ()), point)
    return dict(sorted(found.items()))


def names() -> tuple[str, ...]:
    """The names of the installed backends, whether they load or not."""
    return tuple(_installed())


@functools.cache
def get(name: str) -> Backend:
    """The backend called `name`; raises UnknownBackendError when there is none, or when it fails to load."""
    points = _installed().get(name, ())
    if not points:
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UnknownBackendError(f"no backend is called {name!r}: installed are {', '.join(names()) or 'none'}.{hint}")
    if len(points) > 1:
        raise UnknownBackendError(
            f"backend {name!r} is registered by {' and '.join(point.value for point in points)}: uninstall one."
        )
    (point,) = points
    try:
        backend = point.load()
    except Exception as error:  # whatever a plug-in raises becomes a reason
        raise UnknownBackendError(
            f"backend {name!r} ({point.value}) failed to load: {type(error).__name__}: {error}. Repair or uninstall it."
        ) from error
    if not isinstance(backend, Backend) or backend.name != name:
        raise UnknownBackendError(
            f"backend {name!r} ({point.value}) is {backend!r}: must be a scanlab Backend whose name is {name!r}."
        )
    return backend


def load_all() -> tuple[tuple[Backend, ...], dict[str, str]]:
    """Every backend that loads, in the order of the ladder, and the reason by name for those that do not."""
    loaded, failures = [], {}
    for name in names():
        try:
            loaded.append(get(name))
        except UnknownBackendError as error:
            failures[name] = str(error)
    return tuple(sorted(loaded, key=lambda backend: (backend.rank, backend.name))), failures


def parse_selection(text: str) -> tuple[Backend, dict[str, Value]]:
    """The backend and the (partial) configuration that `text` names, such as "chunked:chunk=32,threads=1"."""
    name, _, settings = text.partition(":")
    backend = get(name.strip())
    choices = {choice.name: choice for choice in backend.space.tunables}
    see = f"see `scanlab list {backend.name}`"
    config: dict[str, Value] = {}
    for part in filter(None, (part.strip() for part in settings.split(","))):
        tunable, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator or tunable not in choices:
            takes = ", ".join(choices) or "none"
            raise ConfigError(f"{part!r} in {text!r}: must be tunable=value with a tunable of {takes}; {see}.")
        spelled = {str(legal).lower(): legal for legal in choices[tunable].legal}
        if value.lower() not in spelled:
            raise ConfigError(f"{tunable}={value} in {text!r}: must be one of {', '.join(spelled)}; {see}.")
        config[tunable] = spelled[value.lower()]
    return backend, config
