"""Name the extra to install where an optional library is missing."""

from __future__ import annotations

import importlib.util

from scanlab.errors import UnavailableError


class MissingExtraError(UnavailableError):
    """A library of an extra that is not installed."""


def require(extra: str, *modules: str) -> None:
    """Raise MissingExtraError unless every one of `modules`, which the extra `extra` installs, can be imported."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed:"
            f" run `pip install 'scanlab[{extra}]'`."
        )
