"""Check of a dataclass that was read from JSON against its own annotations."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

# Integers beyond this fit neither a file's statistics nor a float.
MAX_INT = 1 << 63


def check_field_types(instance: Any) -> None:
    """Raise TypeError or ValueError, with the place, if a field does not hold what its annotation says.

    Known annotations are those of records: numbers, booleans, text, None, literals, unions, tuples of one type,
    mappings and further dataclasses.
    """
    for name, annotation in _annotations(type(instance)).items():  # type: ignore[arg-type]  # mypy: type[Any] has a hash
        _check(getattr(instance, name), annotation, name)


@functools.cache
def _annotations(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _check(value: Any, annotation: Any, place: str) -> None:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        kind = next((each for each in arguments if _is_of(value, each)), None)
        if kind is None:
            raise TypeError(f"{place} is {type(value).__name__}, must be {annotation}")
        _check(value, kind, place)
    elif not _is_of(value, annotation):
        raise TypeError(f"{place} is {type(value).__name__}, must be {getattr(annotation, '__name__', annotation)}")
    elif origin is tuple:
        for index, item in enumerate(value):
            _check(item, arguments[0], f"{place}[{index}]")
    elif origin is Mapping:
        for key, item in value.items():
            _check(key, arguments[0], f"a key of {place}")
            _check(item, arguments[1], f"{place}[{key!r}]")
    elif isinstance(value, str):
        value.encode()  # a lone surrogate can be neither printed nor written
    elif isinstance(value, int) and abs(value) > MAX_INT:
        raise ValueError(f"{place} is out of range")
    elif dataclasses.is_dataclass(value):
        check_field_types(value)


def _is_of(value: Any, annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin is Literal:
        return value in get_args(annotation)
    if origin in (tuple, Mapping):
        return isinstance(value, origin)
    if annotation in (int, float):  # JSON writes a whole float without its point
        return isinstance(value, (int, annotation)) and not isinstance(value, bool)
    return isinstance(value, annotation)
