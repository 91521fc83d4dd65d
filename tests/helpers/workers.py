"""Processes that tune a made-up backend and say what they do, for the tests that kill them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

DELAYS_MS = tuple(float(step) for step in range(12))

WORKER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from helpers.fakes import TINY, sleepy
from helpers.simulated import tune_simulated
from helpers.workers import DELAYS_MS
from scanlab.bench.store import TrialStore
from scanlab.contract.problem import make_inputs
from scanlab.tuning.scheduler import Budget
folder, storage, stalls_at = sys.argv[2:]
started = 0
def say(event):
    global started
    if event.kind in ("started", "waiting"):
        print(event.kind, event.label, flush=True)
    if event.kind == "started":
        time.sleep(0.05)  # so that another process has its turn
        started += 1
        if started == int(stalls_at):
            time.sleep(600)
    if event.kind == "finished":
        print("finished", event.trial.id, flush=True)
store, chosen = TrialStore(folder), [sleepy(delays_ms=DELAYS_MS)]
tune_simulated(TINY, make_inputs(TINY), chosen, Budget(trials=100), store, storage=storage or None, on_event=say)
print("done", flush=True)
"""


def start(folder: Path, storage: str = "", stalls_at: int = 0) -> subprocess.Popen[str]:
    """A process that tunes `sleepy` on a simulated worker, with its records in `folder`.

    At the start of trial number `stalls_at`, counted from 1, it waits to be killed.
    """
    here = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", WORKER, here, str(folder), storage, str(stalls_at)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def said(worker: subprocess.Popen[str], kind: str) -> Iterator[str]:
    """Yield what follows `kind` in the lines of `worker`, as they come."""
    assert worker.stdout is not None
    for line in worker.stdout:
        word, _, rest = line.strip().partition(" ")
        if word == kind:
            yield rest
