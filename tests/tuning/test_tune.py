"""Tuning: everything proved and recorded, the fastest chosen, resumed after any end, within its budget."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import signal
import time
from dataclasses import replace

import optuna
import pytest

from helpers.fakes import TINY, crashing, fake, sleepy, wrong
from helpers.workers import DELAYS_MS, said, start
from scanlab.bench.deadline import OutOfTimeError, time_limit
from scanlab.bench.store import TrialStore
from scanlab.bench.worker import Entrant
from scanlab.contract import registry
from scanlab.contract.backend import Capabilities, at_most
from scanlab.contract.problem import ScanOutput, make_inputs
from scanlab.contract.space import Tunable
from scanlab.errors import RejectedError, ResultsError, ScanlabError
from scanlab.tuning import attempt as attempt_module
from scanlab.tuning import search as study_module
from scanlab.tuning import selection as finals
from scanlab.tuning import tune as module
from scanlab.tuning.budget import Budget
from scanlab.tuning.fleet.process_identity import this_process
from scanlab.tuning.fleet.storage import open_storage
from scanlab.tuning.selection import pareto
from scanlab.tuning.tune import tune

INPUTS = make_inputs(TINY)


ENOUGH = Budget(trials=100)


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """Few blocks and a short race: what is recorded matters here, not how sure it is."""
    monkeypatch.setattr(module, "RACE_S", 0.1)
    monkeypatch.setattr(attempt_module, "MOST_BLOCKS", 2)


def run(backends, folder, budget=ENOUGH, **options):
    return tune(TINY, INPUTS, backends, budget, TrialStore(folder), **options)


def test_the_fastest_configuration_wins_and_everything_is_on_disk(tmp_path):
    found = run([registry.get("reference"), sleepy()], tmp_path)
    recorded = TrialStore(tmp_path).load().trials
    searched = [trial for trial in recorded if trial.phase == "search"]
    assert {trial.id for trial in found.trials} == {trial.id for trial in searched}
    assert found.new == len(searched)
    tried = [trial.config for trial in searched if trial.backend == "sleepy"]
    assert sorted(tried, key=str) == [{"delay_ms": delay} for delay in (0.0, 1.0, 3.0)]
    assert found.winner.backend in ("reference", "sleepy")
    assert found.winner.config.get("delay_ms", 0.0) == 0.0
    assert found.winner.phase == "race"
    assert found.race.why == found.why
    assert set(found.exhausted) == {"reference", "sleepy"}
    assert not found.interrupted


def test_defaults_come_first_and_simplest_first(tmp_path):
    found = run([sleepy("one"), sleepy("two")], tmp_path)
    ordered = sorted(found.trials, key=lambda trial: trial.started_at)
    assert [(trial.backend, trial.config["delay_ms"]) for trial in ordered[:2]] == [("one", 3.0), ("two", 3.0)]


def test_running_again_measures_only_what_is_new(tmp_path):
    first = run([sleepy("one")], tmp_path)
    again = run([sleepy("one")], tmp_path)
    assert again.new == 0
    assert {trial.id for trial in again.trials} == {trial.id for trial in first.trials}
    assert again.winner is not None
    more = run([sleepy("one"), sleepy("two")], tmp_path)
    assert more.new == 3
    assert {trial.backend for trial in more.trials} == {"one", "two"}


def test_another_size_begins_with_what_was_best_on_the_nearest(tmp_path):
    backend = sleepy(delays_ms=(0.0, 20.0, 30.0, 40.0))
    run([backend], tmp_path)
    longer = TINY.replace(length=2 * TINY.length)
    found = tune(longer, make_inputs(longer), [backend], Budget(trials=2), TrialStore(tmp_path))
    tried = [trial.config["delay_ms"] for trial in sorted(found.trials, key=lambda trial: trial.started_at)]
    assert tried == [40.0, 0.0]


def test_another_source_is_measured_again_and_nothing_else(tmp_path):
    source = tmp_path / "kernel.py"
    source.write_text("version 1")

    def changing():
        return fake("changing", lambda scan, config: scan, source=source)

    run([changing(), sleepy()], tmp_path / "results")
    source.write_text("version 2")
    again = run([changing(), sleepy()], tmp_path / "results")
    assert again.new == 1
    hashes = [
        trial.source_hash for trial in TrialStore(tmp_path / "results").load().trials if trial.backend == "changing"
    ]
    assert len(set(hashes)) == 2


def test_other_inputs_and_another_anchor_are_measured_anew(tmp_path):
    run([sleepy()], tmp_path)
    assert run([sleepy()], tmp_path, inputs_label="photograph").new == 3
    anchor = Entrant(registry.get("two_phase"), {})
    assert run([sleepy()], tmp_path, anchor=anchor).new == 3
    assert run([sleepy()], tmp_path, anchor=anchor).new == 0


def test_a_lost_study_is_rebuilt_from_the_records(tmp_path):
    run([sleepy()], tmp_path)
    (tmp_path / "studies.journal").unlink()
    again = run([sleepy()], tmp_path)
    assert again.new == 0
    storage, _ = open_storage(None, tmp_path)
    (summary,) = storage.get_all_studies()
    told = storage.get_all_trials(summary._study_id)
    assert sorted(trial.params["delay_ms"] for trial in told) == [0.0, 1.0, 3.0]
    assert {trial.user_attrs["record"] for trial in told} == {trial.id for trial in again.trials}


def test_lost_records_are_measured_again_whatever_the_study_says(tmp_path):
    run([sleepy()], tmp_path)
    for path in (tmp_path / "trials").iterdir():
        path.unlink()
    assert run([sleepy()], tmp_path).new == 3


def test_the_wrong_and_the_crashing_are_recorded_without_a_number(tmp_path):
    found = run([wrong(), crashing(), sleepy()], tmp_path)
    states = {(trial.backend, trial.config.get("scale")): trial.state for trial in found.trials}
    assert states["wrong", 2.0] == "wrong"
    assert states["wrong", 1.0] == "ok"
    assert states["crashing", None] == "crashed"
    assert all(trial.measurement is None for trial in found.trials if trial.state in ("wrong", "crashed"))
    assert found.winner.config != {"scale": 2.0}
    assert run([wrong(), crashing(), sleepy()], tmp_path).new == 0


def test_a_backend_that_takes_no_part_is_recorded_once_with_its_reason(tmp_path):
    narrow = replace(sleepy("narrow"), capabilities=Capabilities(dtypes=("float64",)))
    absent = replace(sleepy("absent"), unavailable=lambda: "no compiler; install one")
    for _ in range(2):
        found = run([narrow, absent, sleepy()], tmp_path)
    rejected = [trial for trial in TrialStore(tmp_path).load().trials if trial.state == "rejected"]
    assert sorted((trial.backend, trial.reason) for trial in rejected) == [
        ("absent", "no compiler; install one"),
        ("narrow", "dtype float32: it has float64"),
    ]
    assert any("absent takes no part: no compiler; install one" in notice for notice in found.notices)


def test_illegal_combinations_are_never_tried(tmp_path):
    numbers = (1, 2, 3)
    choices = tuple(Tunable(name, numbers, 1) for name in ("left", "right"))
    odd = fake(
        "odd",
        lambda scan, config: scan,
        choices,
        forbids=lambda config, problem: "too much" if config["left"] + config["right"] > 4 else None,
    )
    found = run([odd], tmp_path)
    tried = sorted((trial.config["left"], trial.config["right"]) for trial in found.trials)
    assert tried == [(left, right) for left in numbers for right in numbers if left + right <= 4]
    assert found.exhausted == ("odd",)


def test_a_space_too_large_for_the_trials_is_searched_by_tpe(tmp_path, monkeypatch):
    monkeypatch.setattr(study_module, "EXHAUSTIVE_SIZE", 8)
    wide = fake(
        "wide", lambda scan, config: scan, (Tunable("a", tuple(range(10)), 0), Tunable("b", tuple(range(10)), 0))
    )
    found = run([wide], tmp_path, Budget(trials=12))
    assert found.new == 12
    assert len({tuple(trial.config.items()) for trial in found.trials}) == 12
    assert found.exhausted == ()


def test_every_backend_gets_its_default_and_the_promising_get_more(tmp_path):
    quick = sleepy("quick", tuple(0.1 * step for step in range(8)))
    slow = sleepy("slow", tuple(8.0 + step for step in range(8)))
    found = run([slow, quick], tmp_path, Budget(trials=11))
    counts = {name: sum(trial.backend == name for trial in found.trials) for name in ("quick", "slow")}
    assert counts["slow"] >= module.FEWEST_TRIALS
    assert counts["quick"] > counts["slow"]


def test_the_events_tell_the_story(tmp_path):
    events = []
    run([sleepy()], tmp_path, Budget(trials=2), on_event=events.append)
    kinds = [event.kind for event in events]
    assert kinds[:4] == ["started", "finished", "started", "finished"]
    assert kinds[-1] == "round"
    assert [event.done for event in events] == sorted(event.done for event in events)
    finished = [event for event in events if event.kind == "finished"]
    assert finished[0].best.id == finished[0].trial.id
    assert finished[0].label == "sleepy delay_ms=3.0"
    assert finished[-1].done == 1.0


def test_a_winner_is_as_exact_as_asked_and_the_rest_is_recorded(tmp_path):
    def around(scan, config):
        def rounded(*inputs):
            if config["exact"]:
                time.sleep(0.01)
            out, last_state = scan(*inputs)
            return ScanOutput(out if config["exact"] else out * (1 + 4e-6), last_state)

        return rounded

    choosy = fake("choosy", around, (Tunable("exact", (False, True), False),))
    assert run([choosy], tmp_path).winner.config == {"exact": False}
    strict = run([choosy], tmp_path, max_error=1e-6)
    assert strict.winner.config == {"exact": True}
    # It is measured again only where the first run stopped early, because it was slower than the inexact one.
    assert strict.new <= 1
    assert [trial.config["exact"] for trial in pareto(strict.trials)] == [False, True]


def test_a_budget_of_time_is_kept_and_what_did_not_fit_is_said(tmp_path):
    many = sleepy(delays_ms=tuple(20.0 + step for step in range(40)))
    started = time.monotonic()
    found = run([many], tmp_path, Budget(seconds=3.0))
    # The promise is 10 %; this machine may be busy with other tests.
    assert time.monotonic() - started < 6.0
    assert 0 < found.new < 40
    assert any("no time left" in notice for notice in found.notices)
    assert found.winner is not None


def test_an_attempt_that_would_break_the_promise_is_cut_off_and_does_not_take_the_turn_of_others(tmp_path):
    def around(scan, config):
        time.sleep(60)
        return scan

    started = time.monotonic()
    found = run([fake("stuck", around), sleepy()], tmp_path, Budget(seconds=4.0))
    assert time.monotonic() - started < 12
    assert any(re.search("stuck:? was cut off", notice) for notice in found.notices)
    assert {trial.backend for trial in found.trials} == {"sleepy"}
    assert found.winner is not None
    assert not [trial for trial in TrialStore(tmp_path).load().trials if trial.backend == "stuck"]


def test_a_budget_without_a_bound_is_refused():
    with pytest.raises(ScanlabError, match="--budget 3m or --trials 50"):
        Budget()
    with pytest.raises(ScanlabError, match="seconds=0: a budget must be more than 0"):
        Budget(seconds=0)


def test_an_interruption_keeps_everything_measured(tmp_path):
    def stop(event):
        if event.kind == "started" and event.label == "sleepy delay_ms=0.0":
            raise KeyboardInterrupt

    # The event comes before the attempt, where a person's interruption may come too.
    found = run([sleepy()], tmp_path, on_event=stop)
    assert found.interrupted
    assert found.race is None
    assert found.new >= 1
    assert found.winner is not None
    assert "not raced" in found.why
    again = run([sleepy()], tmp_path)
    assert again.new == 3 - found.new


def test_an_anchor_that_cannot_run_is_refused(tmp_path):
    with pytest.raises(RejectedError, match="the anchor crashing cannot be timed: .*fell over"):
        run([sleepy()], tmp_path, anchor=Entrant(crashing(), {}))


def test_an_unwritable_folder_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="cannot write results"):
        run([sleepy()], tmp_path / "file", on_event=lambda event: pytest.fail("something was tried"))


def test_the_numbers_come_from_a_hold_out_run_in_fresh_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RACE_S", 60.0)
    monkeypatch.setattr(finals, "fresh_processes", lambda builds_s, available_s: 1)
    monkeypatch.setattr("scanlab.bench.compare.MOST_ROUNDS", 10)
    backends = [at_most(registry.get(name), threads=1) for name in ("reference", "two_phase")]
    found = run(backends, tmp_path, Budget(trials=2))
    recorded = TrialStore(tmp_path).load().trials
    held = [trial for trial in recorded if trial.phase == "holdout"]
    assert {trial.backend for trial in held} == {"reference", "two_phase"}
    assert found.winner.phase == "holdout"
    assert "by a hold-out run on fresh inputs" in found.why
    assert {trial.seed for trial in held}.isdisjoint(trial.seed for trial in recorded if trial.phase != "holdout")


def test_nothing_to_run_is_no_winner(tmp_path):
    found = run([crashing()], tmp_path)
    assert found.winner is None
    assert found.why == "No winner: no configuration that may win could be timed."


def test_a_time_limit_interrupts_and_leaves_no_alarm():
    with pytest.raises(OutOfTimeError), time_limit(time.monotonic() + 0.05):
        time.sleep(5)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    with time_limit(time.monotonic() + 5):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_time_limit_lets_an_import_through_to_its_end(tmp_path, monkeypatch):
    (tmp_path / "half_done.py").write_text("import time\ntime.sleep(0.3)\nwhole = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    imported = []

    def import_and_go_on():
        with time_limit(time.monotonic() + 0.05):
            imported.append(importlib.import_module("half_done"))
            time.sleep(5)

    with pytest.raises(OutOfTimeError):
        import_and_go_on()
    assert imported[0].whole


def test_sigkill_loses_no_finished_trial_and_the_next_run_takes_up_from_there(tmp_path):
    finished: set[str] = set()
    for kill_after in (2, 5):
        with start(tmp_path, "sleepy") as worker:
            saying = said(worker, "finished")
            finished |= set(itertools.islice(saying, kill_after))
            worker.send_signal(signal.SIGKILL)
            # What it said before it died was said after it was on disk.
            finished |= set(saying)
    assert finished <= {trial.id for trial in TrialStore(tmp_path).load().trials}
    found = run([sleepy(delays_ms=DELAYS_MS)], tmp_path)
    configs = [
        json.dumps(dict(trial.config)) for trial in TrialStore(tmp_path).load().trials if trial.phase == "search"
    ]
    assert len(configs) == len(set(configs)) == len(DELAYS_MS)
    assert finished <= {trial.id for trial in found.trials}
    assert found.exhausted == ("sleepy",)


@pytest.mark.parametrize("suggested", [0, 1], ids=["before its first parameter", "between two parameters"])
def test_a_process_that_died_while_asking_leaves_a_search_that_goes_on(tmp_path, suggested):
    choices = (Tunable("a", (0, 1), 0), Tunable("b", (0, 1), 0))
    pair = fake("pair", lambda scan, config: scan, choices)
    run([pair], tmp_path, Budget(trials=1))
    storage, _ = open_storage(None, tmp_path)
    (summary,) = storage.get_all_studies()
    half = optuna.load_study(study_name=summary.study_name, storage=storage).ask()
    half.set_user_attr("owner", this_process() | {"pid": 2**22 + 1, "started": "long ago"})
    half.set_user_attr("beat", time.time())
    for choice in choices[:suggested]:
        half.suggest_categorical(choice.name, choice.values)
    found = run([pair], tmp_path)
    assert found.exhausted == ("pair",)
    assert len(found.trials) == 4
    (dead,) = [told for told in storage.get_all_trials(summary._study_id) if told.state.name == "FAIL"]
    assert (dead.number, dead.user_attrs["ended"]) == (half.number, "died")


def test_two_tuners_at_once_share_the_work(tmp_path):
    with start(tmp_path, "sleepy") as one, start(tmp_path, "sleepy") as other:
        outputs = [worker.communicate()[0].split() for worker in (one, other)]
    assert all(output[-1] == "done" for output in outputs)
    searched = [trial for trial in TrialStore(tmp_path).load().trials if trial.phase == "search"]
    assert sorted(trial.config["delay_ms"] for trial in searched) == list(DELAYS_MS)


def test_a_configuration_that_kills_its_process_is_tried_a_few_times_and_then_recorded(tmp_path):
    for _ in range(2):
        with start(tmp_path, "lethal") as worker:
            worker.communicate()
        assert worker.returncode == -signal.SIGKILL
    with start(tmp_path, "lethal") as worker:
        output, _ = worker.communicate()
    assert output.strip().endswith("done")
    (killer,) = [trial for trial in TrialStore(tmp_path).load().trials if trial.config == {"kill": True}]
    assert killer.state == "crashed"
    assert "died" in killer.reason
