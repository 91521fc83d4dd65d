"""How near two machines are to each other, where one has been tuned and the other has not."""

from __future__ import annotations

import math

from scanlab.contract.machine import Silicon

# An instruction set that only one of two has makes other kernels win; another number of cores or another size of
# cache moves the best block size and the best number of threads.
ISA_WEIGHT = 4.0
UNITS = {"K": 10, "M": 20, "G": 30}


def distance(one: Silicon, other: Silicon) -> float:
    """How far two machines are apart: 0 for the same facts.

    The share of instruction sets that only one has, times ISA_WEIGHT; the log2 ratio of the usable CPUs; the mean
    log2 ratio of the caches of the same level; and 1 each for another vendor, another model and other GPUs. A rule
    of thumb to order candidates by, not a prediction of time.
    """
    return (
        ISA_WEIGHT * _apart(frozenset(one.flags), frozenset(other.flags))
        + abs(math.log2(one.usable_cpus / other.usable_cpus))
        + _caches_apart(_caches(one), _caches(other))
        + (one.vendor != other.vendor)
        + ((one.family, one.model) != (other.family, other.model))
        + (one.gpus != other.gpus)
    )


def _apart(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one ^ other) / max(1, len(one | other))


def _caches_apart(one: dict[str, int], other: dict[str, int]) -> float:
    levels = one.keys() | other.keys()
    apart = [
        abs(math.log2(one[level] / other[level])) if {level} <= one.keys() & other.keys() else 1 for level in levels
    ]
    return sum(apart) / max(1, len(apart))


def _caches(silicon: Silicon) -> dict[str, int]:
    """The bytes of every cache by its level and kind, read from "L2 Unified 1024K"."""
    sizes = {}
    for text in silicon.caches:
        name, _, size = text.rpartition(" ")
        if size[:-1].isdigit() and size[-1] in UNITS:
            sizes[name] = int(size[:-1]) << UNITS[size[-1]]
    return sizes
