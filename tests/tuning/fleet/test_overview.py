"""Many workers on one storage: no trial is lost or tried twice, and each kind of machine learns from the others."""

from __future__ import annotations

import itertools
import json
import signal
import time
from dataclasses import replace
from typing import Any

import pytest

from helpers import postgres as lab_postgres
from helpers.fakes import TINY, sleepy
from helpers.records import trial
from helpers.simulated import tune_simulated
from helpers.workers import DELAYS_MS, start
from scanlab.bench.context import BenchmarkContext, Candidate
from scanlab.bench.store import TrialStore
from scanlab.contract import registry
from scanlab.contract.machine import this_machine
from scanlab.contract.problem import make_inputs
from scanlab.errors import ResultsError
from scanlab.tuning.fleet import heartbeat, process_identity
from scanlab.tuning.fleet.overview import fleet_overview
from scanlab.tuning.fleet.storage import open_storage
from scanlab.tuning.fleet.study_summary import summarize_studies
from scanlab.tuning.scheduler import Budget
from scanlab.tuning.search import Search

INPUTS = make_inputs(TINY)


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/studies.db"


def machine(flags=("avx2", "fma"), cpus=2, model="1"):
    """This machine with other silicon."""
    here = this_machine()
    return replace(here, silicon=replace(here.silicon, flags=flags, usable_cpus=cpus, model=model))


def on(monkeypatch, elsewhere):
    monkeypatch.setattr("scanlab.bench.context.this_machine", lambda: elsewhere)


def run(folder, url, backends=None, **options):
    chosen = backends or [sleepy()]
    return tune_simulated(TINY, INPUTS, chosen, Budget(trials=50), TrialStore(folder), storage=url, **options)


def searched(folder):
    return [each for each in TrialStore(folder).load().trials if each.phase == "search"]


@pytest.mark.skipif(lab_postgres.missing() is not None, reason=str(lab_postgres.missing()))
def test_four_workers_on_postgresql_two_of_them_killed_lose_nothing_and_try_everything(tmp_path):
    pytest.importorskip("psycopg")
    folders = [tmp_path / f"worker{number}" for number in range(4)]
    with lab_postgres.server() as url:
        doomed = [start(folder, url, stalls_at=2) for folder in folders[:2]]
        interrupted, finished = [], []
        for worker in doomed:
            _, done, begun = (line.split(maxsplit=1)[1].strip() for line in itertools.islice(worker.stdout, 3))
            finished.append(done)
            interrupted.append(begun)
        living = [start(folder, url) for folder in folders[2:]]
        # All four have joined before two of them are killed, each in the middle of a trial.
        took_part = len(doomed)
        outputs = [worker.stdout.readline() for worker in living]
        for worker in doomed:
            worker.kill()
        for worker, first in zip(living, outputs, strict=True):
            # Not communicate(), which would lose what readline() has read ahead.
            output = first + worker.stdout.read()
            worker.stdout.close()
            assert worker.wait() == 0
            assert output.endswith("done\n"), output
            finished += [line.split()[1] for line in output.splitlines() if line.startswith("finished")]
            took_part += "started" in output
        for worker in doomed:
            assert worker.wait() == -signal.SIGKILL
            worker.stdout.close()
        storage, _ = open_storage(url, tmp_path)
        fleet = fleet_overview(storage)
        entries = [entry for study in storage.get_all_studies() for entry in storage.get_all_trials(study._study_id)]
    tried = [each for each in fleet.trials if each.phase == "search"]
    assert sorted(each.config["delay_ms"] for each in tried) == list(DELAYS_MS)
    died = [entry.params["delay_ms"] for entry in entries if entry.user_attrs.get("ended") == "died"]
    assert sorted(f"sleepy delay_ms={delay}" for delay in died) == sorted(interrupted)
    assert set(finished) == {each.id for each in tried}
    for folder in folders[2:]:
        # The living have everything, so that the loss of the server would cost nothing.
        assert {each.id for each in searched(folder)} == {each.id for each in tried}
    (summary,) = fleet.machines
    assert (summary.num_workers, summary.num_working) == (took_part, 0)
    assert (summary.num_tried, summary.num_configurations) == (len(DELAYS_MS), len(DELAYS_MS))
    (best,) = fleet.best
    assert best.trial.phase in ("comparison", "holdout")
    assert best.why is not None


def test_a_worker_that_joins_has_what_others_measured_and_measures_the_rest(tmp_path, url):
    first = run(tmp_path / "one", url)
    joined = run(tmp_path / "two", url)
    assert joined.new == 0
    assert {each.id for each in joined.trials} == {each.id for each in first.trials}
    assert {each.id for each in searched(tmp_path / "two")} == {each.id for each in first.trials}


def test_a_lost_database_is_filled_again_from_any_worker_s_records(tmp_path, url):
    first = run(tmp_path / "one", url)
    (tmp_path / "studies.db").unlink()
    assert run(tmp_path / "one", url).new == 0
    assert {each.id for each in first.trials} <= {
        each.id for each in fleet_overview(open_storage(url, tmp_path)[0]).trials
    }


def test_a_damaged_record_in_the_database_is_measured_again(tmp_path, url):
    run(tmp_path / "one", url)
    storage: Any
    storage, _ = open_storage(url, tmp_path)
    engine = storage._backend.engine
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE trial_user_attributes SET value_json = replace(value_json, 'sleepy', 'drowsy') WHERE key = 'line'"
        )
    assert run(tmp_path / "two", url).new == 3


def test_a_machine_of_another_kind_measures_anew_and_starts_with_the_winner_of_the_nearest_machine(
    tmp_path, url, monkeypatch
):
    delays = (*(float(step) for step in range(6)), 40.0)
    near, far = machine(cpus=2, model="1"), machine(flags=("asimd",), cpus=64, model="2")
    for elsewhere, legal in ((near, (0.0, 40.0)), (far, (5.0, 40.0))):
        on(monkeypatch, elsewhere)
        run(tmp_path / elsewhere.silicon.model, url, [sleepy(delays_ms=legal)])
    on(monkeypatch, machine(cpus=4, model="3"))
    labels = []
    found = run(
        tmp_path / "new",
        url,
        [sleepy(delays_ms=delays)],
        on_event=lambda event: labels.append(event.label) if event.kind == "started" else None,
    )
    assert found.new == len(delays)
    assert labels[:3] == ["sleepy delay_ms=40.0", "sleepy delay_ms=0.0", "sleepy delay_ms=5.0"]
    fleet = fleet_overview(open_storage(url, tmp_path)[0])
    assert len(fleet.machines) == 3
    assert [each.trial.machine.silicon.model for each in fleet.best] == ["1", "2", "3"]


def search_on(url, folder, delays_ms=(0.0, 1.0)):
    context = BenchmarkContext.of(TINY, INPUTS, "made", seed=0)
    baseline = Candidate(registry.get("reference"), {"threads": 1})
    storage, _ = open_storage(url, folder)
    return Search(sleepy(delays_ms=delays_ms), context, baseline, [], storage, TrialStore(folder), carries=True)


def test_a_clock_that_jumps_ends_nothing_early_and_keeps_no_lease(tmp_path, url, monkeypatch):
    jumps, now = itertools.cycle((0.0, 4e8, -1.5e9, 3600.0, -61.0)), time.time
    monkeypatch.setattr("time.time", lambda: now() + next(jumps))
    delays = tuple(float(step) for step in range(6))
    first = run(tmp_path / "one", url, [sleepy(delays_ms=delays)])
    assert first.new == len(delays)
    assert all(0 <= each.duration_s < 60 for each in first.trials)
    assert run(tmp_path / "two", url, [sleepy(delays_ms=delays)]).new == 0
    (summary,) = fleet_overview(open_storage(url, tmp_path)[0]).machines
    assert (summary.num_working, summary.num_tried) == (0, len(delays))


def test_a_silent_worker_on_another_host_loses_its_lease_and_its_late_record_still_counts(tmp_path, url, monkeypatch):
    late = search_on(url, tmp_path / "late")
    other = search_on(url, tmp_path / "other")
    monkeypatch.setattr(process_identity, "host", lambda: "elsewhere")
    held = late.ask(60.0)
    monkeypatch.undo()
    assert other.ask(60.0) != held
    assert other.ask(60.0) is None
    assert other.waiting
    monkeypatch.setattr(process_identity, "LEASE_S", 0.0)
    assert other.ask(60.0) == held
    failed = {"state": "crashed", "measurement": None, "verdict": None, "reason": "boom"}
    record = trial(backend="sleepy", config=dict(held.config), **failed)
    late.tell(record)
    ((study,), _) = summarize_studies(open_storage(url, tmp_path / "late")[0])
    assert [json.loads(line[line.index('"trial":') + 8 : -1])["id"] for line, _ in study.lines] == [record.id]


def test_a_lease_gives_signs_of_life(tmp_path, url, monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.01)
    search = search_on(url, tmp_path)
    assert search.ask(60.0) is not None
    storage, _ = open_storage(url, tmp_path)
    (study,) = storage.get_all_studies()

    def beat():
        (entry,) = storage.get_all_trials(study._study_id)
        return entry.user_attrs["beat"]

    first = beat()
    for _ in range(200):
        if beat() > first:
            break
    assert beat() > first
    search.close()


def test_the_nearest_machine_serves_a_machine_that_nobody_tuned_with_what_fits_there(tmp_path, url, monkeypatch):
    near, far = machine(cpus=2, model="1"), machine(flags=("asimd",), cpus=64, model="2")
    for elsewhere in (near, far):
        on(monkeypatch, elsewhere)
        run(tmp_path / elsewhere.silicon.model, url)
    fleet = fleet_overview(open_storage(url, tmp_path)[0])
    stranger = machine(cpus=4, model="3")
    chosen = fleet.best_for(stranger, TINY, fits=lambda one: True)
    assert (chosen.trial.machine, chosen.why) == (near, fleet.best[0].why)
    second = fleet.best_for(stranger, TINY, fits=lambda one: one.config != chosen.trial.config)
    assert second.trial.machine == near
    assert second.trial.config != chosen.trial.config
    assert fleet.best_for(far, TINY, fits=lambda one: True).trial.machine == far
    assert fleet.best_for(stranger, TINY, fits=lambda one: False) is None
    assert fleet.best_for(stranger, TINY.replace(dim=99), fits=lambda one: True) is None


def test_a_storage_that_is_lost_while_tuning_is_said_and_what_was_measured_is_kept(tmp_path, url):
    def lose(event):
        if event.kind == "finished":
            (tmp_path / "studies.db").write_bytes(b"no database any more" * 1000)

    with pytest.raises(ResultsError, match="the storage of the studies was lost: .*Everything measured is in"):
        run(tmp_path / "one", url, on_event=lose)
    assert len(searched(tmp_path / "one")) == 1
