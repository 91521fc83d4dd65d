"""Recognise importing code that has a fallback for a name that is missing."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType, FrameType

IMPORT_FROM = dis.opmap["IMPORT_FROM"]


def imports_name(frame: FrameType) -> bool:
    """Return True where `frame` runs a `from module import name`."""
    position = frame.f_lasti
    return position >= 0 and frame.f_code.co_code[position] == IMPORT_FROM


def imports_without_fallback(frame: FrameType) -> bool:
    """Return True where `frame` runs a `from module import name` that no `try` or `with` block surrounds.

    Such code fails as a whole where the name is missing, even if it never uses the name. An attribute that is probed
    (getattr, hasattr) and a guarded import are followed by a path of their own.
    """
    code, position = frame.f_code, frame.f_lasti
    return imports_name(frame) and not any(start <= position < end for start, end in _guarded_ranges(code))


def _guarded_ranges(code: CodeType) -> Iterator[tuple[int, int]]:
    """Yield the byte ranges of `code` that an exception handler covers.

    Source: CPython, InternalDocs/exception_handling.md: (start, size, target, depth) as varints of six bits.
    """
    numbers: list[int] = []
    value = 0
    for byte in code.co_exceptiontable:
        value = value << 6 | byte & 0x3F
        if not byte & 0x40:
            numbers.append(value)
            value = 0
    for start, size in zip(numbers[::4], numbers[1::4], strict=True):
        yield 2 * start, 2 * (start + size)
