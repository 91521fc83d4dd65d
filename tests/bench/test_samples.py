"""Measurements: what is computed from the samples of blocks, and how sure that is."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from helpers.records import block, measurement
from scanlab.bench.samples import Measurement, clean

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
    assert one.reference_median_ms == 20.0


def test_one_sample_is_its_own_median():
    assert measurement(block([7 * MS], [7 * MS])).quartiles_ms == (7.0, 7.0, 7.0)


def test_disturbed_blocks_are_kept_and_give_no_number():
    noisy = block([50 * MS], [2 * MS], disturbed="steal")
    mixed = measurement(block([MS], [2 * MS]), noisy)
    assert mixed.speedup == pytest.approx(2.0)
    assert (mixed.median_ms, mixed.disturbed_blocks) == (1.0, 1)
    alone = measurement(noisy, noisy)
    assert math.isnan(alone.median_ms)
    assert math.isnan(alone.speedup)
    assert not alone.speedup_interval.known
    assert not alone.baseline_interval.known


def test_a_slow_block_is_never_dropped_for_being_slow():
    blocks = [block([MS], [MS]), block([MS], [MS]), block([90 * MS], [MS]), block([MS], [MS])]
    assert clean(blocks) == tuple(blocks)


def test_a_speedup_is_the_product_of_two_ratios_and_as_unsure_as_both():
    beside = [block([MS], [2 * MS])] * 6
    reference = [block([spread * MS], [MS]) for spread in (7, 7, 8, 8, 9, 9)]
    one = replace(measurement(*beside), reference="loop threads=1", reference_blocks=tuple(reference))
    assert one.speedup == pytest.approx(16.0)
    assert one.reference_median_ms == 8.0
    assert one.speedup_interval == pytest.approx((14.0, 18.0))
    assert one.baseline_log_ratio == pytest.approx(-math.log(2))
    assert not replace(one, reference_blocks=tuple(reference[:3])).speedup_interval.known
    assert Measurement.from_json(one.to_json()) == one


def test_a_reference_and_its_blocks_go_together():
    with pytest.raises(ValueError, match="exactly when it names one"):
        replace(measurement(), reference="loop")


def old(values):
    """JSON of today's measurement in the words of schema 2."""
    words = {"baseline": "anchor", "baseline_config": "anchor_config", "baseline_source_hash": "anchor_source_hash"}
    words |= {"baseline_calls": "anchor_calls"}
    kept = {words.get(name, name): value for name, value in values.items() if not name.startswith("reference")}
    kept["blocks"] = [
        {("anchor_ns" if name == "baseline_ns" else name): value for name, value in each.items()}
        for each in values["blocks"]
    ]
    return kept


def test_a_record_of_schema_1_is_read():
    assert Measurement.from_json(old(measurement().to_json())) == measurement()


def test_a_record_of_schema_2_with_a_pacer_is_read():
    values = old(measurement(block([2 * MS], [MS])).to_json())
    anchor = old(measurement(block([8 * MS], [MS])).to_json())["blocks"]
    read = Measurement.from_json(values | {"pacer": "quick threads=2 exp=fast", "anchor_blocks": anchor})
    assert (read.baseline, dict(read.baseline_config)) == ("quick", {"threads": 2, "exp": "fast"})
    assert read.reference == "reference threads=1"
    assert read.speedup == pytest.approx(4.0)
    assert Measurement.from_json(values | {"pacer": None, "anchor_blocks": []}).reference is None


def test_a_measurement_without_blocks_is_refused():
    with pytest.raises(ValueError, match="at least one block"):
        Measurement.from_json({**measurement().to_json(), "blocks": []})
