"""Errors that scanlab raises on purpose: each names the value given, the rule, and the cure."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'native'?" for the known name that is nearest to `name`, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


class ScanlabError(Exception):
    """Base of every error that scanlab raises on purpose."""


class ProblemError(ScanlabError, ValueError):
    """A problem or its tensors are malformed: shapes, dtypes, options."""


class ConfigError(ScanlabError, ValueError):
    """A configuration is not in a backend's space, or not legal for a problem."""


class RejectedError(ScanlabError):
    """A backend cannot solve this problem and says why instead of computing something else."""


class UnknownBackendError(ScanlabError, LookupError):
    """No backend of this name is registered, or it is registered and failed to load."""


class UnavailableError(ScanlabError, RuntimeError):
    """A backend cannot run on this machine: no compiler, no GPU, a missing library."""


class ResultsError(ScanlabError):
    """Recorded results cannot be read or written."""


class ProfileError(ScanlabError):
    """A profile is damaged, from a newer scanlab, or from another machine."""


class InputError(ScanlabError):
    """A file the user named (image, suite, weights) is missing or has other content than expected."""


# Errors of making an object of a file's content where that is damaged or of another version. Behind a right
# checksum anything may stand: a record of another branch, or of another program.
UNREADABLE = (ArithmeticError, AttributeError, LookupError, RecursionError, ScanlabError, TypeError, ValueError)
