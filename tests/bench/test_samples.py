"""Measurements: what is computed from the samples of blocks, and how sure that is."""

from __future__ import annotations

import json
import math

import pytest

from helpers.records import block, measurement
from scanlab.bench.samples import Measurement, undisturbed

MS = 1_000_000


def test_a_measurement_survives_json():
    one = measurement(block([1, 2], [3, 4]), block([5], [6], process=1, disturbed="throttled"))
    assert Measurement.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_the_ratio_is_paired_within_blocks_so_that_drift_cancels():
    # The machine slows down threefold from block to block; the candidate always takes half as long.
    drifting = measurement(*(block([MS * 3**step], [2 * MS * 3**step]) for step in range(6)))
    assert drifting.log_ratio == pytest.approx(math.log(0.5))
    assert drifting.speedup_interval == pytest.approx((2.0, 2.0))


def test_five_blocks_cannot_be_sure_at_95_percent_however_alike_they_are():
    alike = [block([MS], [2 * MS])] * 6
    assert measurement(*alike).speedup_interval.known
    few = measurement(*alike[1:])
    assert few.speedup == pytest.approx(2.0)
    assert few.speedup_interval == (0.0, math.inf)
    assert few.speedup_interval.spelled() == "unknown"


def test_medians_and_quartiles_are_over_all_samples():
    one = measurement(block([1 * MS, 2 * MS, 3 * MS], [10 * MS]), block([4 * MS, 5 * MS], [30 * MS]))
    assert one.quartiles_ms == (2.0, 3.0, 4.0)
    assert one.median_ms == 3.0
    assert one.anchor_median_ms == 20.0


def test_one_sample_is_its_own_median():
    assert measurement(block([7 * MS], [7 * MS])).quartiles_ms == (7.0, 7.0, 7.0)


def test_disturbed_blocks_are_kept_but_not_used_where_there_are_enough_others():
    calm = [block([MS], [2 * MS]) for _ in range(3)]
    noisy = block([50 * MS], [2 * MS], disturbed="steal")
    assert measurement(*calm, noisy).speedup == pytest.approx(2.0)
    assert measurement(*calm, noisy).disturbed_blocks == 1
    assert measurement(calm[0], noisy).used == (calm[0], noisy)


def test_a_slow_block_is_never_dropped_for_being_slow():
    blocks = [block([MS], [MS]), block([MS], [MS]), block([90 * MS], [MS]), block([MS], [MS])]
    assert undisturbed(blocks) == tuple(blocks)


def test_a_measurement_without_blocks_is_refused():
    with pytest.raises(ValueError, match="at least one block"):
        Measurement.from_json({**measurement().to_json(), "blocks": []})
