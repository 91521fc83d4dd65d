"""Selection of the trials that count."""

from __future__ import annotations

import dataclasses

from helpers.records import block, measurement, trial
from scanlab.contract.machine import this_machine
from scanlab.contract.problem import ScanProblem
from scanlab.report.select import Contest, contests, families, placings, select, slugs, unmeasured_lengths


def timed(speedup: float, **changes):
    """A trial that is `speedup` times as fast as its reference."""
    took_ns = round(8_000_000 / speedup)
    return trial(**({"measurement": measurement(block([took_ns] * 3, [8_000_000]))} | changes))


def test_trials_of_other_machines_and_other_software_are_left_out():
    here = this_machine()
    other = dataclasses.replace(here, silicon=dataclasses.replace(here.silicon, model_name="another"))
    updated = dataclasses.replace(here, software=dataclasses.replace(here.software, torch="99"))
    mine = timed(2.0)
    chosen = select([mine, timed(9.0, machine=other), timed(9.0, machine=updated)], here)
    assert chosen.trials == (mine,)
    assert chosen.left_out == ("2 from another machine or with other software",)


def test_trials_of_changed_sources_are_stale_for_that_backend_only():
    old = timed(9.0, source_hash="old", started_at=1.0)
    new = timed(2.0, source_hash="new", started_at=2.0)
    neighbour = timed(3.0, backend="two_phase", source_hash="old", started_at=0.0)
    chosen = select([new, old, neighbour], this_machine())
    assert chosen.trials == (neighbour, new)
    assert chosen.left_out == ("1 of sources that have changed since",)


def test_the_last_repetition_counts_and_not_the_luckiest():
    lucky, last = timed(9.0, started_at=1.0), timed(2.0, started_at=2.0)
    chosen = select([lucky, last], this_machine())
    assert chosen.trials == (last,)
    assert chosen.left_out == ("1 repeated later",)


def test_ratios_to_another_reference_are_not_compared():
    beside_reference = timed(2.0, started_at=1.0)
    other = dataclasses.replace(measurement(), baseline="two_phase")
    beside_other = timed(9.0, config={"chunk": 64, "threads": 1}, measurement=other, started_at=2.0)
    failed = trial(state="crashed", reason="boom", measurement=None, config={"chunk": 8, "threads": 1}, started_at=3.0)
    chosen = select([beside_other, beside_reference, failed], this_machine())
    assert chosen.trials == (beside_reference, failed)
    assert chosen.left_out == ("1 beside another reference",)


def test_a_hold_out_counts_more_than_a_luckier_race_and_that_more_than_a_luckier_search():
    searched = timed(9.0, phase="search", config={"chunk": 64, "threads": 1})
    raced = timed(4.0, phase="comparison")
    held_out = timed(3.0, phase="holdout")
    (placing,) = placings([searched, raced])
    assert placing.trial is raced
    assert (placing.tried, placing.failed) == (2, 0)
    (placing,) = placings([searched, raced, held_out])
    assert placing.trial is held_out


def test_a_hold_out_of_one_round_counts_less_than_a_comparison_of_many():
    rounds = measurement(*(block([1_000_000], [2_000_000]) for _ in range(8)))
    compared = trial(phase="comparison", measurement=rounds)
    (placing,) = placings([compared, timed(9.0, phase="holdout")])
    assert placing.trial is compared


def test_backends_stand_by_speed_and_those_without_numbers_last():
    wrong = trial(backend="associative", state="wrong", reason="off", measurement=None)
    rejected = trial(backend="triton", state="rejected", reason="no GPU", measurement=None, verdict=None)
    slow, fast = timed(2.0, backend="two_phase"), timed(30.0, backend="native")
    pruned = timed(40.0, backend="native", config={"chunk": 8, "threads": 1}, state="pruned", reason="too slow")
    ranked = placings([rejected, slow, wrong, fast, pruned])
    assert [placing.backend for placing in ranked] == ["native", "two_phase", "associative", "triton"]
    assert ranked[0].trial is fast
    assert [placing.failed for placing in ranked] == [0, 0, 1, 1]


def test_contests_are_problems_with_their_inputs():
    problem = ScanProblem(batch=1, dim=4, length=8, state=2)
    trials = [timed(2.0), timed(3.0, inputs_label="other"), timed(4.0, phase="lengths")]
    assert list(contests(trials)) == [Contest(problem, "made"), Contest(problem, "other")]


def test_lengths_form_a_family_when_nothing_else_differs():
    problem = ScanProblem(batch=1, dim=4, length=8, state=2)
    lengths = [timed(2.0, phase="lengths", problem=problem.replace(length=length)) for length in (8, 16)]
    alone = timed(2.0, phase="lengths", problem=problem.replace(batch=2))
    assert families([*lengths, alone, timed(2.0)]) == [tuple(lengths)]


def test_titles_and_slugs_say_what_differs_from_the_defaults():
    problem = ScanProblem(
        batch=1, dim=384, length=197, direction="bidirectional", groups=2, has_z=False, gradients=True
    )
    one, other = Contest(problem, "photograph"), Contest(problem, "drawn")
    assert one.title == (
        "batch 1, dim 384, length 197, state 16, groups 2, bidirectional, gradients, no z; inputs photograph"
    )
    assert list(slugs([one, other]).values()) == [
        "1x384x197x16-groups_2-bidirectional-gradients-no_z",
        "1x384x197x16-groups_2-bidirectional-gradients-no_z-2",
    ]


def test_a_disturbed_trial_never_stands_before_a_clean_one():
    lucky = timed(330.0, state="disturbed", reason="8 of 9 blocks", config={"chunk": 8, "threads": 1})
    alone = timed(330.0, state="disturbed", reason="8 of 9 blocks", backend="native")
    clean = timed(63.5)
    assert [each.trial for each in placings([lucky, alone, clean])] == [clean, alone]


def test_a_backend_is_unmeasured_everywhere_beyond_a_length_or_at_some():
    problem = ScanProblem(batch=1, dim=4, length=8, state=2)
    lengths = {"native": (8, 16, 32), "chunked": (8, 16), "compiled": (8, 32), "triton": ()}
    family = [
        timed(2.0, phase="lengths", backend=backend, problem=problem.replace(length=length))
        for backend, measured in lengths.items()
        for length in measured
    ]
    searched = [timed(2.0, backend=backend, problem=problem) for backend in lengths]
    elsewhere = timed(2.0, backend="two_phase", problem=problem.replace(dim=8))
    assert unmeasured_lengths(family, [*family, *searched, elsewhere]) == "chunked above 16; compiled at 16; triton"
