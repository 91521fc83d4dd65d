"""The nearest machine shares instruction sets, then cores and caches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scanlab.contract.machine import Silicon

HERE = Silicon(
    vendor="AuthenticAMD",
    model_name="a processor",
    family="25",
    model="17",
    stepping="1",
    flags=("avx2", "fma", "avx512f"),
    caches=("L1 Data 32K", "L2 Unified 1024K", "L3 Unified 32768K"),
    usable_cpus=4,
    memory_bytes=1 << 34,
    gpus=(),
)


def test_the_same_silicon_is_at_no_distance():
    assert HERE.distance(HERE) == 0
    assert HERE.distance(replace(HERE, memory_bytes=1, model_name="another name")) == 0


@pytest.mark.parametrize(
    ("nearer", "farther"),
    [
        ({"usable_cpus": 8}, {"usable_cpus": 16}),
        ({"usable_cpus": 2}, {"flags": ("avx2", "fma")}),
        ({"caches": ("L1 Data 32K", "L2 Unified 2M", "L3 Unified 32M")}, {"caches": ("L1 Data 32K", "L2 Unified 8M")}),
        ({"flags": ("avx2", "fma")}, {"flags": ("asimd",)}),
        ({"stepping": "2"}, {"model": "18"}),
        ({}, {"vendor": "GenuineIntel"}),
        ({}, {"gpus": ("a GPU",)}),
    ],
)
def test_who_shares_more_is_nearer_and_the_distance_is_the_same_both_ways(nearer, farther):
    one, other = replace(HERE, **nearer), replace(HERE, **farther)
    assert HERE.distance(one) < HERE.distance(other)
    assert one.distance(other) == other.distance(one)


def test_the_same_caches_in_other_units_are_the_same():
    assert HERE.distance(replace(HERE, caches=("L1 Data 32K", "L2 Unified 1M", "L3 Unified 32M"))) == 0


def test_a_system_that_tells_nothing_has_a_distance_too():
    silent = replace(HERE, flags=(), caches=())
    assert 0 < HERE.distance(silent) < float("inf")
    assert silent.distance(silent) == 0
