"""A process counts as alive until it dies, and no other process is taken for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from scanlab.tuning.fleet import process_identity
from scanlab.tuning.fleet.process_identity import is_alive, process_start, this_process


def test_a_running_process_is_alive():
    assert is_alive(this_process(), silent_s=1e9)


def test_an_ended_process_is_dead():
    code = (
        "from scanlab.tuning.fleet.process_identity import this_process; import json; print(json.dumps(this_process()))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not is_alive(json.loads(said), silent_s=0.0)


def test_a_zombie_is_dead():
    with subprocess.Popen(["sleep", "60"]) as process:
        identity = {**this_process(), "pid": process.pid, "started": process_start(process.pid)}
        assert is_alive(identity, silent_s=1e9)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_alive(identity, silent_s=0.0)


def test_another_process_with_the_same_pid_is_not_taken_for_it():
    assert not is_alive({**this_process(), "started": "in another life"}, silent_s=0.0)


def test_a_number_of_no_process_is_dead():
    for pid in (10**4400, -1, 0, 1.5, "1", None):
        assert not is_alive(this_process() | {"pid": pid}, 0.0)


def test_another_host_is_believed_for_a_while():
    elsewhere = {**this_process(), "host": "elsewhere"}
    assert is_alive(elsewhere, silent_s=60.0)
    assert not is_alive(elsewhere, silent_s=process_identity.LEASE_S + 1)


def test_without_proc_a_pid_must_do(monkeypatch):
    monkeypatch.setattr(process_identity.Path, "exists", lambda self: False)
    assert process_start(os.getpid()) == "running"
    assert process_start(2**22 + 1) == ""
