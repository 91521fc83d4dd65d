"""A configuration belongs to one process at a time, however many ask at the same moment."""

from __future__ import annotations

import collections
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import pytest

from helpers.records import trial
from scanlab.contract.machine import this_machine
from scanlab.contract.problem import ScanProblem
from scanlab.contract.space import Tunable
from scanlab.tuning.fleet import process_identity
from scanlab.tuning.fleet.overview import fleet_overview
from scanlab.tuning.fleet.process_identity import this_process
from scanlab.tuning.fleet.storage import open_storage
from scanlab.tuning.fleet.study_summary import summarize_studies
from scanlab.tuning.fleet.trial_queue import TrialQueue

CHOICES = (Tunable("a", tuple(range(3)), 0), Tunable("b", ("x", "y", "z"), "x"))
CONFIGS = [{"a": a, "b": b} for a in range(3) for b in "xyz"]

# Everybody wants the same configurations in the same order, from the same moment on.
GREEDY = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1].split(":")
from test_trial_queue import CHOICES, CONFIGS
from scanlab.tuning.fleet.trial_queue import TrialQueue
from scanlab.tuning.fleet.storage import open_storage
storage, _ = open_storage(sys.argv[2], Path())
queue = TrialQueue(storage, "greedy", {}, CHOICES, carries_records=False)
print("ready", flush=True)
sys.stdin.readline()
leases = [(config, queue.lease(config)) for config in CONFIGS]
print([config for config, lease in leases if lease is not None], flush=True)
sys.stdin.readline()
"""


def queue(url, folder, **facts):
    return TrialQueue(open_storage(url, folder)[0], "s", facts, CHOICES, carries_records=True)


@pytest.fixture(params=["journal", "sqlite"])
def place(request, tmp_path):
    return str(tmp_path / "my.journal") if request.param == "journal" else f"sqlite:///{tmp_path}/studies.db"


def test_of_many_that_lease_the_same_at_once_exactly_one_gets_it(place, tmp_path):
    command = [sys.executable, "-c", GREEDY, f"{Path(__file__).parent}:{Path(__file__).parents[2]}", place]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    # Nobody may leave before everybody is done: what the dead held is free again.
    got = [json.loads(worker.stdout.readline().replace("'", '"')) for worker in workers]
    for worker in workers:
        worker.communicate("leave\n")
    owners = collections.Counter(json.dumps(config) for each in got for config in each)
    assert owners == {json.dumps(config): 1 for config in CONFIGS}


def test_a_lease_is_seen_by_others_until_it_ends(place, tmp_path):
    one, other = queue(place, tmp_path), queue(place, tmp_path)
    lease = one.lease(CONFIGS[0])
    assert other.snapshot().leased == {'{"a":0,"b":"x"}'}
    assert other.lease(CONFIGS[0]) is None
    lease.release()
    assert other.snapshot().leased == frozenset()
    other.lease(CONFIGS[0]).finish(trial(config=CONFIGS[0], id="a record"))
    assert list(one.snapshot().recorded) == ["a record"]


def test_what_was_finished_since_the_last_snapshot_is_not_leased_again(place, tmp_path):
    one, other = queue(place, tmp_path), queue(place, tmp_path)
    one.snapshot()
    other.lease(CONFIGS[0]).finish(trial(config=CONFIGS[0]))
    assert one.lease(CONFIGS[0]) is None
    # A process that has seen the record may have a reason to try it once more.
    one.snapshot()
    assert one.lease(CONFIGS[0]) is not None


def test_what_a_dead_process_held_is_free(place, tmp_path, monkeypatch):
    one, other = queue(place, tmp_path), queue(place, tmp_path)
    monkeypatch.setattr(process_identity, "this_process", lambda: this_process() | {"pid": 2**22 + 1})
    one.lease(CONFIGS[0])
    monkeypatch.undo()
    assert other.snapshot().leased == frozenset()
    assert other.lease(CONFIGS[0]) is not None


ABOUT = ScanProblem(batch=1, dim=4, length=8, state=2)


def about(**changes):
    return {"kind": "search", "problem": ABOUT.key, "machine": this_machine().to_json(), "backend": "made"} | changes


def test_a_summary_says_what_a_study_is_about_and_how_far_it_is(place, tmp_path):
    own = queue(place, tmp_path, **about())
    before = time.time()
    own.lease(CONFIGS[0]).finish(trial(config=CONFIGS[0]))
    own.add(trial(config=CONFIGS[1], state="crashed", measurement=None, verdict=None, reason="boom"))
    own.lease(CONFIGS[2])
    storage, _ = open_storage(place, tmp_path)
    ((study,), notices) = summarize_studies(storage, ABOUT)
    assert notices == ()
    assert (study.facts.kind, study.facts.problem, study.facts.machine) == ("search", ABOUT.key, this_machine())
    assert (study.best, study.num_tried) == (CONFIGS[0], 2)
    assert len(study.workers) == len(study.working) == 1
    assert before <= study.heard_at <= time.time()
    assert len(study.lines) == 2
    assert summarize_studies(storage, ABOUT.replace(length=9)) == ((), ())


@pytest.mark.parametrize(
    "facts",
    [
        [],
        "text",
        {"kind": "search"},
        about(machine={}),
        about(backend=5),
        about(configurations="many"),
        about(kind=None),
    ],
)
def test_a_study_that_is_not_understood_costs_only_itself(place, tmp_path, facts):
    storage, _ = open_storage(place, tmp_path)
    odd = optuna.create_study(study_name="odd", storage=storage)
    odd.set_user_attr("facts", facts)
    queue(place, tmp_path, **about()).add(trial(config=CONFIGS[0]))
    studies, (notice,) = summarize_studies(storage)
    assert [study.num_tried for study in studies] == [1]
    assert "the study 'odd' was skipped" in notice


@pytest.mark.parametrize(
    "attrs",
    [
        {"owner": 5},
        {"owner": {}, "beat": "now"},
        {"owner": {"host": 7, "pid": "x", "started": None}, "beat": 1.0},
        {"owner": this_process() | {"pid": 10**30}, "beat": 1.0},
        {"owner": this_process(), "beat": 10**400},
        {"owner": this_process(), "beat": math.nan},
        {"record": 5, "line": 7},
        {"record": ["a"], "line": "no record"},
        {"record": None, "why": {}, "line": "no record"},
    ],
)
@pytest.mark.parametrize("state", ["RUNNING", "COMPLETE"])
def test_odd_attributes_of_a_trial_stop_nobody(place, tmp_path, attrs, state):
    own = queue(place, tmp_path, **about())
    storage, _ = open_storage(place, tmp_path)
    odd = optuna.trial.create_trial(
        state=optuna.trial.TrialState[state],
        value=1.0 if state == "COMPLETE" else None,
        params=CONFIGS[0],
        distributions=own.distributions,
        user_attrs=attrs,
    )
    storage.create_new_trial(storage.get_study_id_from_name("s"), odd)
    assert own.snapshot().leased == frozenset()
    lease = own.lease(CONFIGS[1])
    lease.finish(trial(config=CONFIGS[1]))
    assert fleet_overview(storage).trials[0].config == CONFIGS[1]


def test_a_heartbeat_from_the_future_keeps_no_lease(place, tmp_path, monkeypatch):
    one, other = queue(place, tmp_path), queue(place, tmp_path)
    monkeypatch.setattr(process_identity, "this_process", lambda: this_process() | {"host": "elsewhere"})
    monkeypatch.setattr(time, "time", lambda: 1e10)
    one.lease(CONFIGS[0])
    monkeypatch.undo()
    assert other.snapshot().leased == frozenset()
    assert other.lease(CONFIGS[0]) is not None


class Clocks:
    """The clocks of this process, set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall_s, self.monotonic_s = 1.7e9, 100.0
        monkeypatch.setattr(time, "time", lambda: self.wall_s)
        monkeypatch.setattr(time, "monotonic", lambda: self.monotonic_s)

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.wall_s += seconds
        self.monotonic_s += seconds


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
def test_a_clock_that_is_set_takes_no_lease_from_a_living_process_and_keeps_none_of_a_dead_one(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    one, other = queue(place, tmp_path), queue(place, tmp_path)
    clocks = Clocks(monkeypatch)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(process_identity, "host", lambda: "elsewhere")
        one.lease(CONFIGS[0])
    leased = {'{"a":0,"b":"x"}'}
    assert other.snapshot().leased == leased
    clocks.wall_s += step_s
    assert other.snapshot().leased == leased
    for _ in range(3):  # it lives, by a clock that was not set
        clocks.wait(100.0)
        storage, _ = open_storage(place, tmp_path)
        running = storage.get_all_trials(storage.get_study_id_from_name("s"))
        trial_id = running[0]._trial_id
        storage.set_trial_user_attr(trial_id, "beat", clocks.wall_s - step_s)
        assert other.snapshot().leased == leased
    clocks.wait(process_identity.LEASE_S - 1.0)
    assert other.snapshot().leased == leased
    clocks.wait(2.0)
    assert other.snapshot().leased == frozenset()


def test_the_dashboard_of_optuna_shows_the_study(place, tmp_path):
    dashboard = pytest.importorskip("optuna_dashboard")
    own = queue(place, tmp_path)
    own.lease(CONFIGS[0]).finish(trial(config=CONFIGS[0]))
    app = dashboard.wsgi(open_storage(place, tmp_path)[0])
    request = {"PATH_INFO": "/api/studies"}
    setup_testing_defaults(request)
    answer = b"".join(app(request, lambda status, headers, error=None: None))
    (shown,) = json.loads(answer)["study_summaries"]
    assert shown["study_name"] == "s"
