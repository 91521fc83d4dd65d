"""Build times: estimates that survive the process, and backends that are left out of a short budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from helpers.fakes import TINY, sleepy
from helpers.simulated import tune_simulated
from scanlab.bench.store import TrialStore
from scanlab.contract.problem import make_inputs
from scanlab.tuning.build_times import NAME, BuildTimes
from scanlab.tuning.scheduler import Budget


def test_the_shortest_build_of_a_source_is_expected_and_the_longest_of_another(tmp_path):
    backend = sleepy()
    assert BuildTimes(tmp_path).estimate_s(backend) is None
    for seconds in (90.0, 3.0, 5.0):
        BuildTimes(tmp_path).add(backend, seconds)
    assert BuildTimes(tmp_path).estimate_s(backend) == 3.0
    source = tmp_path / "changed.py"
    source.write_text("changed")
    assert BuildTimes(tmp_path).estimate_s(replace(backend, sources=(source,))) == 90.0


DAMAGED = (
    *("", "[]", '{"sleepy": 3}', '{"sleepy": {"source": "a"}}', "\0", "[" * 100_000),
    *(f'{{"sleepy": {{"source": "a", "again_s": {one}, "longest_s": {one}}}}}' for one in ("-1.0", "NaN", "1e308")),
)


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_counts_as_empty(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    times = BuildTimes(tmp_path)
    assert times.estimate_s(sleepy()) is None
    times.add(sleepy(), 2.0)
    assert times.estimate_s(sleepy()) == 2.0


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    BuildTimes(tmp_path / "file").add(sleepy(), 2.0)
    assert BuildTimes(tmp_path / "file").estimate_s(sleepy()) is None


def tuned(folder: Path, budget_s: float, slow=("slow",), names=("fast", "slow"), **worker):
    times = BuildTimes(folder)
    for name in slow:
        for _ in range(2):  # the first build may have compiled what the next one finds
            times.add(sleepy(name), 6.0)
    return tune_simulated(
        TINY,
        make_inputs(TINY),
        [sleepy(name) for name in names],
        Budget(budget_s),
        TrialStore(folder),
        build_times=times,
        worker=worker,
    )


def test_a_backend_that_is_slow_to_build_is_a_row_with_its_reason(tmp_path):
    found = tuned(tmp_path, 10.0)
    (row,) = found.failed
    assert (row.backend, row.state) == ("slow", "rejected")
    assert "building takes about 6 s in each process, too long for a budget of 10 s; give it 20 s or more" in row.reason
    assert {trial.backend for trial in found.trials} == {"fast"}
    assert not tuned(tmp_path / "longer", 30.0).failed
    assert not tuned(tmp_path / "alone", 10.0, names=("slow",)).failed


def test_a_first_build_and_a_long_budget_leave_nothing_out(tmp_path):
    times = BuildTimes(tmp_path)
    times.add(sleepy("slow"), 300.0)
    assert times.estimate_s(sleepy("slow")) == 300.0
    both = [sleepy("fast"), sleepy("slow")]
    assert not times.too_slow(both, 10.0)
    times.add(sleepy("slow"), 200.0)
    assert times.too_slow(both, 10.0).keys() == {"slow"}
    assert not times.too_slow(both, 240.0)


def test_a_short_budget_holds_beside_a_neighbour_and_the_builds_are_beyond_it(tmp_path):
    def build_s(candidate):
        return 40.0 if candidate.is_default else 0.05

    found = tuned(tmp_path, 10.0, slow=(), build_s=build_s, disturbance=lambda second: "other processes used 9 ms")
    assert found.winner is None
    assert found.too_busy is not None
    assert found.measuring_s + found.waited_s < 12.5  # a comparison that was begun is finished
    assert found.elapsed_s - found.measuring_s - found.waited_s == pytest.approx(2 * 40.0, rel=0.1)


def test_what_verifying_within_its_share_leaves_is_the_longest_build_and_a_row_with_its_reason(tmp_path):
    found = tuned(tmp_path, 30.0, slow=("one",), names=("one", "two", "three", "four"), verify_s=9.0)
    (row,) = (each for each in found.failed if "verifying" in each.reason and each.backend == "one")
    assert "verifying the others took 40% of the budget of 30 s; give it a larger budget" in row.reason


def test_a_backend_that_was_built_and_not_measured_is_a_row_with_its_reason(tmp_path):
    found = tuned(tmp_path, 2.0, slow=(), build_s=lambda each: 0.01 if each.backend.name == "fast" else 5.0)
    rows = {trial.backend: trial.reason for trial in found.failed}
    tried = {trial.backend for trial in found.trials}
    assert rows.keys() | tried == {"fast", "slow"}
    assert all("no time left to measure it" in reason for reason in rows.values())


def test_a_backend_that_an_earlier_tuning_timed_is_no_row_but_a_notice(tmp_path):
    tuned(tmp_path, 10.0, slow=(), disturbance=lambda second: "other processes used 9 ms")
    found = tuned(tmp_path, 0.05, slow=())
    timed = {each.backend for each in TrialStore(tmp_path).load().trials if each.state == "disturbed"}
    assert timed
    assert not timed & {each.backend for each in found.failed}
    assert any("no time left to repeat them" in each for each in found.notices)


def test_a_backend_without_time_is_measured_by_the_next_tuning(tmp_path):
    starved = tuned(tmp_path, 0.05, slow=())
    assert {trial.backend for trial in starved.failed} == {"fast", "slow"}
    assert {trial.backend for trial in tuned(tmp_path, 30.0, slow=()).trials} == {"fast", "slow"}
