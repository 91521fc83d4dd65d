"""Search: what is tried next, when a trial has measured enough, and what may prune it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

from helpers.fakes import TINY, fake, sleepy
from helpers.records import block, measurement, trial
from helpers.simulated import tiny_context
from scanlab.bench.context import Candidate
from scanlab.bench.store import TrialStore
from scanlab.contract import registry
from scanlab.contract.space import Tunable
from scanlab.tuning.fleet.storage import open_storage
from scanlab.tuning.search import MAX_BLOCKS, Search, has_converged, should_prune

MS = 1_000_000
BASELINE = Candidate(registry.get("reference"), {"threads": 1})


def of(ratios, disturbed=None):
    """A measurement whose blocks have these ratios to the baseline."""
    made = measurement(*(block([int(MS * ratio)], [MS], disturbed=disturbed) for ratio in ratios))
    return replace(made, baseline_source_hash=BASELINE.backend.source_hash)


BEST = of([1.0, 1.01, 0.99, 1.0, 1.0, 1.0])


def search_in(folder, backend, recorded=(), storage=None):
    opened, _ = open_storage(storage, folder)
    return Search(backend, tiny_context(), BASELINE, recorded, opened, TrialStore(folder))


def test_one_clean_block_prunes_what_is_far_behind():
    assert "2.5 times as long" in should_prune(of([2.5]), BEST)
    assert should_prune(of([1.9]), BEST) is None


def test_a_block_whose_median_is_an_artefact_prunes_nothing():
    """The baseline's samples were too fast in most of it, or those of the candidate too slow."""
    for samples in (((1000, 1010, 1020), (100, 110, 1000)), ((1000, 9000, 9100), (1000, 1010, 1020))):
        assert should_prune(measurement(block(*samples)), BEST) is None


def test_disturbed_blocks_prune_nothing_and_are_pruned_by_nothing():
    assert should_prune(of([9.0] * 5, disturbed="steal"), BEST) is None
    assert should_prune(of([9.0] * 5), None) is None


def test_the_slightly_slower_is_given_up_once_the_intervals_are_apart():
    assert "intervals are apart" in should_prune(of([1.2, 1.21, 1.22]), BEST)
    assert should_prune(of([1.2, 1.21]), BEST) is None
    assert should_prune(of([1.2, 0.95, 1.3]), BEST) is None


def test_a_lucky_best_prunes_by_the_pessimistic_end_of_its_interval():
    lucky = of([0.1, 0.1, 1.0, 1.0, 1.0, 1.0])
    assert lucky.baseline_interval.low < -1
    assert should_prune(of([1.05, 1.05, 1.05]), of([0.1, 0.1, 1.0, 1.1, 1.1, 1.1])) is None


def test_what_would_be_the_best_is_confirmed():
    assert not has_converged(of([0.5, 0.5, 0.5]), BEST)
    assert has_converged(of([0.5] * 6), BEST)
    assert not has_converged(of([1.0] * 3), None)
    assert has_converged(of([1.1, 1.1, 1.1]), BEST)


def test_blocks_are_repeated_until_sure_or_until_there_are_many():
    assert not has_converged(of([1.5, 1.8, 1.3]), BEST)
    assert not has_converged(of([1.1] * 6, disturbed="steal"), BEST)
    assert has_converged(of([1.5] * MAX_BLOCKS, disturbed="steal"), BEST)


def test_only_a_confirmed_and_clean_trial_is_the_best(tmp_path):
    backend = sleepy()
    common = {"problem": TINY, "backend": "sleepy", "source_hash": backend.source_hash}
    lucky = trial(config={"delay_ms": 0.0}, measurement=of([0.1] * 3), **common)
    solid = trial(config={"delay_ms": 1.0}, measurement=of([0.8] * 6), **common)
    search = search_in(tmp_path, backend, [lucky, solid])
    assert search.best == solid.measurement
    assert [each.id for each in search.eligible] == [lucky.id, solid.id]


def test_disturbed_trials_are_tried_again(tmp_path):
    backend = sleepy(delays_ms=(0.0, 1.0))
    disturbed = trial(
        problem=TINY,
        backend="sleepy",
        source_hash=backend.source_hash,
        config={"delay_ms": 1.0},
        state="disturbed",
        reason="steal",
        measurement=of([1.0] * 5, disturbed="steal"),
    )
    assert search_in(tmp_path, backend, [disturbed]).left == 2


def test_a_search_asks_for_the_defaults_first_and_for_everything(tmp_path):
    backend = fake("pair", lambda scan, config: scan, (Tunable("a", (0, 1), 1), Tunable("b", ("x", "y"), "y")))
    search = search_in(tmp_path, backend, storage=f"sqlite:///{tmp_path}/studies.db")
    asked = []
    while (candidate := search.ask(available_s=60.0)) is not None:
        asked.append(dict(candidate.config))
        search.tell(
            trial(backend="pair", config=asked[-1], state="crashed", measurement=None, verdict=None, reason="boom")
        )
    assert asked[0] == {"a": 1, "b": "y"}
    assert sorted(map(str, asked)) == sorted(map(str, backend.space.configs(TINY)))
    assert search.best is None


def test_what_was_asked_for_and_not_told_may_be_asked_for_again(tmp_path):
    backend = fake("one", lambda scan, config: scan, (Tunable("a", tuple(range(6)), 3),))
    search = search_in(tmp_path, backend)
    assert dict(search.ask(60.0).config) == {"a": 3}
    search.close()
    assert dict(search.ask(60.0).config) == {"a": 3}


def test_importing_the_benchmark_does_not_load_optuna():
    code = "import sys, scanlab.bench.compare, scanlab.bench.store; sys.exit('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
