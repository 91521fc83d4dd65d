"""Bootstrap intervals: they cover what they claim to, and know that processes differ."""

from __future__ import annotations

import numpy as np
import pytest

from scanlab.bench.stats import bootstrap


def test_it_covers_the_true_median_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        low, high = bootstrap([rng.normal(0.7, 0.1, size=15).tolist()], 0.95)
        hits += low <= 0.7 <= high
    assert 0.90 <= hits / 300 <= 0.995


def test_more_confidence_is_a_wider_interval_around_the_median():
    values = [list(np.random.default_rng(2).normal(size=20))]
    narrow, wide = bootstrap(values, 0.8), bootstrap(values, 0.99)
    assert wide.low < narrow.low <= np.median(values[0]) <= narrow.high < wide.high


def test_processes_that_disagree_widen_the_interval():
    rng = np.random.default_rng(3)
    processes = [list(rng.normal(centre, 0.01, size=10)) for centre in (-0.3, -0.1, 0.1, 0.3)]
    together = [[value for process in processes for value in process]]
    apart, pooled = bootstrap(processes), bootstrap(together)
    assert apart.high - apart.low > 0.3
    assert apart.low <= pooled.low
    assert apart.high >= pooled.high


def test_the_same_values_give_the_same_interval():
    values = [[0.1, 0.2, 0.4], [0.3, 0.1]]
    assert bootstrap(values) == bootstrap(values)


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="at least one block"):
        bootstrap([[], []])
