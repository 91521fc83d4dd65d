"""Leases: a process holds what it signed for until it dies, and nobody else is taken for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from scanlab.tuning.fleet import owner
from scanlab.tuning.fleet.owner import holds, this_process


def test_a_living_process_holds_what_it_signed_for():
    assert holds(this_process(), silent_s=1e9)


def test_a_dead_process_holds_nothing():
    code = "from scanlab.tuning.fleet.owner import this_process; import json; print(json.dumps(this_process()))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not holds(json.loads(said), silent_s=0.0)


def test_a_dead_process_that_its_parent_has_not_noticed_holds_nothing():
    with subprocess.Popen(["sleep", "60"]) as process:
        signature = {**this_process(), "pid": process.pid, "started": owner._started(process.pid)}
        assert holds(signature, silent_s=1e9)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not holds(signature, silent_s=0.0)


def test_another_process_with_the_same_pid_is_not_taken_for_it():
    assert not holds({**this_process(), "started": "in another life"}, silent_s=0.0)


def test_another_host_is_believed_for_a_while():
    elsewhere = {**this_process(), "host": "elsewhere"}
    assert holds(elsewhere, silent_s=60.0)
    assert not holds(elsewhere, silent_s=owner.LEASE_S + 1)


def test_without_proc_a_pid_must_do(monkeypatch):
    monkeypatch.setattr(owner.Path, "exists", lambda self: False)
    assert owner._started(os.getpid()) == "running"
    assert owner._started(2**22 + 1) == ""
