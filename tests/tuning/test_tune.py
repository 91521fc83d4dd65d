"""Tuning: the defaults first and always, clean evidence alone, and nothing weaker than what it replaces."""

from __future__ import annotations

import itertools
import json
import random
import re
import signal
from dataclasses import replace

import optuna
import pytest

from helpers.fakes import TINY, crashing, fake, sleepy, wrong
from helpers.simulated import delays, tune_simulated
from helpers.workers import DELAYS_MS, said, start
from scanlab.bench.clock import MeasuringClock
from scanlab.bench.compare import MIN_ROUNDS
from scanlab.bench.context import Candidate
from scanlab.bench.simulated_worker import SimulatedWorker
from scanlab.bench.store import TrialStore
from scanlab.contract.backend import Capabilities
from scanlab.contract.evidence import EvidenceRank
from scanlab.contract.problem import make_inputs
from scanlab.contract.space import Tunable
from scanlab.errors import ResultsError, ScanlabError
from scanlab.tuning.fleet.process_identity import this_process
from scanlab.tuning.fleet.storage import open_storage
from scanlab.tuning.scheduler import MIN_TRIALS, Budget
from scanlab.tuning.tune import tune

ALL = Budget(trials=100)


def run(backends, folder, budget=ALL, problem=TINY, **options):
    return tune_simulated(problem, make_inputs(problem), backends, budget, TrialStore(folder), **options)


def configs(found):
    return sorted(float(trial.config["delay_ms"]) for trial in found.trials)


def test_everything_is_tried_and_the_best_is_held_out(tmp_path):
    found = run([sleepy()], tmp_path)
    assert configs(found) == [0.0, 1.0, 3.0]
    assert found.new == 3
    assert found.winner.config == {"delay_ms": 0.0}
    assert (found.winner.phase, found.evidence) == ("holdout", EvidenceRank.HOLDOUT)
    assert found.exhausted == ("sleepy",)
    assert found.gain.value == pytest.approx(3.0, rel=0.1)
    assert "gain over the untuned choice (sleepy delay_ms=3.0): 300 % (" in found.why.replace("299", "300").replace(
        "301", "300"
    )
    phases = {trial.phase for trial in TrialStore(tmp_path).load().trials}
    assert phases == {"search", "comparison", "holdout"}


def test_the_defaults_take_part_everywhere(tmp_path):
    run([sleepy("one"), sleepy("two", rank=2)], tmp_path)
    for phase in ("search", "comparison", "holdout"):
        trials = [trial for trial in TrialStore(tmp_path).load().trials if trial.phase == phase]
        assert any(trial.config == {"delay_ms": 3.0} for trial in trials), phase


def test_a_default_that_nothing_beats_stays(tmp_path):
    found = run([sleepy()], tmp_path, time_ms=lambda candidate: 1.0)
    assert found.winner.config == {"delay_ms": 3.0}
    assert found.gain is None
    assert "untuned choice" in found.why


def test_what_serves_untuned_has_to_be_beaten_though_it_was_not_asked_for(tmp_path):
    untuned = Candidate(sleepy("served"), {"delay_ms": 0.0})
    found = run(
        [sleepy("asked")],
        tmp_path,
        untuned=untuned,
        time_ms=lambda each: delays(each) + 9 * (each.backend.name == "asked"),
    )
    assert found.winner.backend == "served"
    assert found.comparison.winner.is_untuned


def test_what_is_deployed_takes_part_though_it_was_not_asked_for(tmp_path):
    deployed = Candidate(sleepy("deployed"), {"delay_ms": 0.0})
    found = run(
        [sleepy("asked")],
        tmp_path,
        deployed=deployed,
        time_ms=lambda each: delays(each) + 9 * (each.backend.name == "asked"),
    )
    assert found.winner.backend == "deployed"
    assert found.evidence is EvidenceRank.HOLDOUT
    assert found.gain.over == "asked delay_ms=3.0"


def test_running_again_measures_only_what_is_new(tmp_path):
    first = run([sleepy("one")], tmp_path)
    again = run([sleepy("one")], tmp_path)
    assert again.new == 0
    assert {trial.id for trial in again.trials} == {trial.id for trial in first.trials}
    assert again.winner is not None
    assert run([sleepy("one"), sleepy("two")], tmp_path).new == 3


def test_another_size_begins_with_what_was_best_on_the_nearest(tmp_path):
    backend = sleepy(delays_ms=(0.0, 20.0, 30.0, 40.0))
    run([backend], tmp_path)
    found = run([backend], tmp_path, Budget(trials=2), problem=TINY.replace(length=2 * TINY.length))
    tried = [trial.config["delay_ms"] for trial in sorted(found.trials, key=lambda trial: trial.started_at)]
    assert tried == [40.0, 0.0]


def test_another_source_is_measured_again_and_nothing_else(tmp_path):
    source = tmp_path / "kernel.py"
    source.write_text("version 1")

    def changing():
        return fake("changing", lambda scan, config: scan, source=source)

    slower = {"time_ms": lambda candidate: 1.0 + 5.0 * (candidate.backend.name == "changing")}
    run([changing(), sleepy()], tmp_path / "results", **slower)
    source.write_text("version 2")
    assert run([changing(), sleepy()], tmp_path / "results", **slower).new == 1


def test_a_lost_study_is_rebuilt_from_the_records(tmp_path):
    run([sleepy()], tmp_path)
    (tmp_path / "studies.journal").unlink()
    again = run([sleepy()], tmp_path)
    assert again.new == 0
    storage, _ = open_storage(None, tmp_path)
    (summary,) = storage.get_all_studies()
    told = storage.get_all_trials(summary._study_id)
    assert {trial.user_attrs["record"] for trial in told} == {trial.id for trial in again.trials}


def test_lost_records_are_measured_again_whatever_the_study_says(tmp_path):
    run([sleepy()], tmp_path)
    for path in (tmp_path / "trials").iterdir():
        path.unlink()
    assert run([sleepy()], tmp_path).new == 3


def test_a_backend_that_takes_no_part_is_a_row_with_its_reason_and_recorded_once(tmp_path):
    narrow = replace(sleepy("narrow"), capabilities=Capabilities(dtypes=("float64",)))
    absent = replace(sleepy("absent"), unavailable=lambda: "no compiler; install one")
    failing = {"failure": lambda candidate: "SIGSEGV" if candidate.backend.name == "deadly" else None}
    for _ in range(2):
        found = run([narrow, absent, sleepy("deadly"), sleepy()], tmp_path, worker=failing)
    expected = [
        ("absent", "rejected", "no compiler; install one"),
        ("deadly", "crashed", "SIGSEGV"),
        ("narrow", "rejected", "dtype float32: it has float64"),
    ]
    assert sorted((trial.backend, trial.state, trial.reason) for trial in found.failed) == expected
    recorded = [trial for trial in TrialStore(tmp_path).load().trials if trial.state in ("rejected", "crashed")]
    assert len(recorded) == 3


def test_a_slow_build_is_no_part_of_the_budget(tmp_path):
    slow = {"build_s": lambda each: 60.0 if each.backend.name == "compiled" and each.is_default else 0.01}
    seen = []
    found = run([sleepy("compiled"), sleepy()], tmp_path, Budget(seconds=10.0), worker=slow, on_event=seen.append)
    assert [trial.state for trial in found.trials if trial.backend == "compiled"] == ["ok"] * 3
    assert any(event.kind == "building" and "building compiled" in event.label for event in seen)
    assert found.elapsed_s - 60.0 < 12.0


def test_a_backend_that_builds_longer_than_the_budget_is_timed_at_its_defaults_alone(tmp_path):
    slow = {"build_s": lambda each: 30.0 if each.backend.name == "compiled" else 0.01}
    compiled = replace(sleepy("compiled", delays_ms=(0.0, 1.0, 2.0)), compiles_each=True)
    found = run([compiled, sleepy()], tmp_path, Budget(seconds=10.0), worker=slow)
    assert [trial.config for trial in found.trials if trial.backend == "compiled"] == [compiled.space.defaults]
    assert any("compiled: there is no time left for its other 2" in notice for notice in found.notices)
    assert found.elapsed_s - 30.0 < 12.0


def test_a_budget_of_time_is_kept_and_what_did_not_fit_is_said(tmp_path):
    many = sleepy(delays_ms=tuple(1.0 + 0.05 * step for step in range(200)))
    found = run([many], tmp_path, Budget(seconds=10.0))
    assert 0 < found.new < 200
    assert found.elapsed_s < 12.0
    assert found.winner is not None


def test_a_short_budget_compares_few_in_rounds_enough_to_decide(tmp_path):
    many = sleepy(delays_ms=tuple(1.0 + 0.001 * step for step in range(200)))
    found = run([many], tmp_path, Budget(seconds=3.0))
    assert found.winner is not None
    assert found.comparison.clean_rounds >= MIN_ROUNDS
    assert any("no time to compare these too" in notice for notice in found.notices)


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


def test_every_backend_gets_a_few_trials_and_the_promising_get_more(tmp_path):
    quick = sleepy("quick", tuple(0.1 * step for step in range(8)))
    slow = sleepy("slow", tuple(8.0 + step for step in range(8)))
    found = run([slow, quick], tmp_path, Budget(trials=11))
    counts = {name: sum(trial.backend == name for trial in found.trials) for name in ("quick", "slow")}
    assert min(counts.values()) >= MIN_TRIALS
    assert sum(counts.values()) == 11


def test_the_events_tell_the_story(tmp_path):
    events = []
    run([sleepy()], tmp_path, Budget(trials=2), on_event=events.append)
    kinds = [event.kind for event in events]
    assert kinds[0] == "building"
    assert [kind for kind in kinds if kind in ("started", "finished")] == ["started", "finished"] * 2
    assert kinds[-1] == "round"
    finished = [event for event in events if event.kind == "finished"]
    assert finished[0].label == "sleepy delay_ms=3.0"
    assert finished[-1].done == 1.0


def test_a_winner_is_as_exact_as_asked(tmp_path):
    found = run([sleepy()], tmp_path, max_error=1e-9)
    assert found.winner is None
    assert run([sleepy()], tmp_path, max_error=1e-6).winner is not None


def test_a_machine_that_stays_busy_is_waited_for_and_chooses_nothing(tmp_path):
    events = []
    busy = {"disturbance": lambda second: "other processes used 900 ms of CPU"}
    found = run([sleepy()], tmp_path, Budget(seconds=5.0), worker=busy, on_event=events.append)
    assert found.winner is None
    assert found.evidence == EvidenceRank.NONE
    assert re.search(r"the machine was too busy, (\d+) of \1 blocks were disturbed", found.why)
    assert any(event.kind == "waiting" and "waiting for up to" in event.message for event in events)
    assert found.elapsed_s < 6.5


def test_a_machine_that_calms_down_is_tuned(tmp_path):
    busy = {"disturbance": lambda second: "steal" if second < 3.0 else None}
    assert run([sleepy()], tmp_path, Budget(seconds=90.0), worker=busy).evidence == EvidenceRank.HOLDOUT


@pytest.mark.parametrize("seed", range(20))
def test_artefacts_hijack_nothing(tmp_path, seed):
    """Samples 5 to 20 times too fast or too slow, in one of ten, and disturbed stretches."""
    noise = random.Random(seed)

    def sample(candidate, rng):
        base = 20.0 if candidate.backend.name == "reference" else 1.0 + 0.2 * float(candidate.config["delay_ms"])
        factor = 1.0
        if noise.random() < 0.1:
            factor = noise.uniform(5, 20) ** noise.choice((-1, 1))
        return 1e6 * base * factor * (1 + abs(rng.gauss(0, 0.01)))

    from scanlab.bench.clock import MeasuringClock
    from scanlab.bench.simulated_worker import SimulatedTime, SimulatedWorker

    time = SimulatedTime()
    worker = SimulatedWorker(time, sample, seed=seed, disturbance=lambda second: "steal" if second % 3 > 2.4 else None)
    backend = sleepy(delays_ms=tuple(float(step) for step in range(6)))
    found = tune(
        TINY,
        make_inputs(TINY),
        [backend],
        Budget(seconds=20.0),
        TrialStore(tmp_path),
        open_worker=worker.open,
        clock=MeasuringClock(time),
        seed=seed,
    )
    assert found.winner is not None
    labels = {found.winner.label, *found.tied}
    assert "sleepy delay_ms=0.0" in labels


def test_a_budget_without_a_bound_is_refused():
    with pytest.raises(ScanlabError, match="--budget 3m or --trials 50"):
        Budget()
    with pytest.raises(ScanlabError, match="seconds=0: a budget must be more than 0"):
        Budget(seconds=0)


def test_the_last_configuration_that_does_not_fit_is_one(tmp_path):
    slow = {"build_s": lambda each: 30.0 if each.backend.name == "compiled" else 0.01}
    compiled = replace(sleepy("compiled", delays_ms=(0.0, 1.0)), compiles_each=True)
    found = run([compiled, sleepy()], tmp_path, Budget(seconds=10.0), worker=slow)
    assert any("compiled: there is no time left for its last configuration (" in notice for notice in found.notices)


@pytest.mark.parametrize("label", ["sleepy delay_ms=0.0", "comparison, round 1", "hold-out, round 1"])
def test_an_interruption_keeps_what_was_measured_and_chooses_nothing(tmp_path, label):
    def stop(event):
        if event.kind in ("started", "round") and event.label == label:
            raise KeyboardInterrupt

    found = run([sleepy()], tmp_path, on_event=stop)
    assert (found.interrupted, found.winner, found.entry, found.evidence) == (True, None, None, EvidenceRank.NONE)
    assert "interrupted before the choice was finished" in found.why
    assert run([sleepy()], tmp_path).new == 3 - found.new


def test_an_interruption_while_the_worker_is_closed_leaves_the_choice_that_is_finished(tmp_path, monkeypatch):
    def interrupt(worker):
        raise KeyboardInterrupt

    monkeypatch.setattr(SimulatedWorker, "close", interrupt)
    found = run([sleepy()], tmp_path)
    assert (found.interrupted, found.evidence) == (True, EvidenceRank.HOLDOUT)


def test_an_unwritable_folder_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="cannot write results"):
        run([sleepy()], tmp_path / "file", on_event=lambda event: pytest.fail("something was tried"))


def test_nothing_to_run_is_no_winner(tmp_path):
    found = run([sleepy()], tmp_path, worker={"failure": lambda candidate: "boom"})
    assert found.winner is None
    assert found.why == "No winner: no configuration that may win could be timed."


def test_backends_passed_as_values_are_tuned_in_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr("scanlab.bench.system_state.observe", lambda seconds: None)  # waits for no quiet machine
    exact = wrong()
    looks = itertools.count()  # time that passes by looking at the clock, whatever else this machine does
    clock = MeasuringClock(lambda: next(looks) / 1e3)
    found = tune(TINY, make_inputs(TINY), [exact, crashing()], Budget(seconds=1.0), TrialStore(tmp_path), clock=clock)
    states = {(trial.backend, trial.config.get("scale")): trial.state for trial in (*found.trials, *found.failed)}
    assert states["wrong", 2.0] == "wrong"
    assert states["crashing", None] == "crashed"
    assert any("everything ran in this process" in notice for notice in found.notices)
    assert all(trial.measurement is None for trial in (*found.trials, *found.failed) if trial.state == "wrong")


def test_sigkill_loses_no_finished_trial_and_the_next_run_takes_up_from_there(tmp_path):
    finished: set[str] = set()
    for kill_after in (2, 5):
        with start(tmp_path) as worker:
            saying = said(worker, "finished")
            finished |= set(itertools.islice(saying, kill_after))
            worker.send_signal(signal.SIGKILL)
            # What it said before it died was said after it was on disk.
            finished |= set(saying)
    assert finished <= {trial.id for trial in TrialStore(tmp_path).load().trials}
    found = run([sleepy(delays_ms=DELAYS_MS)], tmp_path)
    tried = [json.dumps(dict(trial.config)) for trial in TrialStore(tmp_path).load().trials if trial.phase == "search"]
    assert len(tried) == len(set(tried)) == len(DELAYS_MS)
    assert finished <= {trial.id for trial in found.trials}


@pytest.mark.parametrize("suggested", [0, 1], ids=["before its first parameter", "between two parameters"])
def test_a_process_that_died_while_asking_leaves_a_search_that_goes_on(tmp_path, suggested):
    choices = (Tunable("a", (0, 1), 0), Tunable("b", (0, 1), 0))
    pair = fake("pair", lambda scan, config: scan, choices)
    run([pair], tmp_path, Budget(trials=1))
    storage, _ = open_storage(None, tmp_path)
    (summary,) = storage.get_all_studies()
    half = optuna.load_study(study_name=summary.study_name, storage=storage).ask()
    half.set_user_attr("owner", this_process() | {"pid": 2**22 + 1, "started": "long ago"})
    half.set_user_attr("beat", 0.0)
    for choice in choices[:suggested]:
        half.suggest_categorical(choice.name, choice.values)
    found = run([pair], tmp_path)
    assert found.exhausted == ("pair",)
    assert len(found.trials) == 4


def test_two_tuners_at_once_share_the_work(tmp_path):
    with start(tmp_path) as one, start(tmp_path) as other:
        outputs = [worker.communicate()[0].split() for worker in (one, other)]
    assert all(output[-1] == "done" for output in outputs)
    searched = [trial for trial in TrialStore(tmp_path).load().trials if trial.phase == "search"]
    assert sorted(trial.config["delay_ms"] for trial in searched) == list(DELAYS_MS)
