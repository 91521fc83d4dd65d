"""Checks of the options that a model is built with."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real

from scanlab.errors import ProblemError


def check_options(
    sizes: Mapping[str, object], counts: Mapping[str, object], probabilities: Mapping[str, object]
) -> None:
    """Raise ProblemError for options that make no model.

    Args:
        sizes: By name; each must be a whole number of at least 1, or some of them.
        counts: The same, but 0 is legal.
        probabilities: By name; each must be between 0 and 1.
    """
    for least, options in ((1, sizes), (0, counts)):
        for name, given in options.items():
            each = given if isinstance(given, list | tuple) else (given,)
            if not each or not all(_is_whole(size, least) for size in each):
                raise ProblemError(f"{name}={given!r}: must be a whole number of at least {least}.")
    for name, given in probabilities.items():
        if not isinstance(given, Real) or not 0.0 <= float(given) <= 1.0:
            raise ProblemError(f"{name}={given!r}: must be a probability between 0 and 1.")


def _is_whole(size: object, least: int) -> bool:
    return isinstance(size, Integral) and not isinstance(size, bool) and int(size) >= least
