"""Writers and tuners that are killed at random moments, for the claim that no finished trial is lost."""

import itertools
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from trust_claim import Claim
from trust_noise import SMALL, comparer_of

from scanlab.bench.context import Candidate
from scanlab.bench.records import Trial
from scanlab.bench.store import TrialStore
from scanlab.contract import registry
from scanlab.contract.backend import Backend, at_most
from scanlab.contract.problem import make_inputs
from scanlab.contract.space import config_key
from scanlab.tuning.result import Event
from scanlab.tuning.scheduler import Budget
from scanlab.tuning.tune import tune

VICTIMS = ("chunked", "associative")
WRITER_LIVES_S, TUNER_LIVES_S = 0.05, 2.0
LAST_TUNER_S = 120.0


def append_forever(folder: Path, trial: Trial, note: Path) -> None:
    """Append copies of `trial`, and write down the name of each once it is on disk."""
    results = TrialStore(folder)
    with note.open("w") as file:
        while True:
            copy = Trial.from_json({**trial.to_json(), "id": os.urandom(8).hex()})
            results.append(copy)
            os.write(file.fileno(), f"{copy.id}\n".encode())


def victims() -> list[Backend]:
    """Return the backends of a tuning that is killed; on one thread, because a forked process cannot wake others."""
    return [at_most(registry.get(name), 1) for name in VICTIMS]


def tune_and_say(folder: Path, note: Path) -> None:
    """Tune a small problem; log trials that are begun, trials on disk, and the end of the search."""
    with note.open("w") as file:

        def say(event: Event) -> None:
            if event.kind == "finished" and event.trial is not None:
                os.write(file.fileno(), f"{event.trial.id}\n".encode())
            if event.kind in ("started", "round"):
                os.write(file.fileno(), f"{event.kind} {event.label}\n".encode())
            if event.kind == "round":
                time.sleep(LAST_TUNER_S)

        tune(SMALL, make_inputs(SMALL), victims(), Budget(trials=10_000), TrialStore(folder), on_event=say)


def killed(
    work: Callable[..., None], folder: Path, note: Path, lives_s: float, *given: object, over: str = "round "
) -> list[str]:
    """Return the whole lines that `work` wrote before it was killed, after `lives_s` or once it wrote `over`."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["scanlab.tuning.tune", work.__module__])
    victim = server.Process(target=work, args=(folder, *given, note))
    victim.start()
    while victim.is_alive() and not note.exists():
        time.sleep(0.001)
    until = time.monotonic() + lives_s
    while time.monotonic() < until and not (note.exists() and over in note.read_text()):
        time.sleep(random.uniform(0.0, min(0.02, lives_s)))
    assert victim.pid is not None
    assert victim.is_alive(), f"{work.__name__} ended by itself: status {victim.exitcode}"
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    return note.read_text().split("\n")[:-1]  # the text after the last line end was cut off


def kills_of_a_writer(kills: int, folder: Path) -> Claim:
    """Kill a writer at random moments; every record that it reported must be on disk."""
    started, said = time.monotonic(), set[str]()
    two_phase = Candidate(registry.get("two_phase"), {"threads": 1})
    (trial,) = comparer_of(two_phase, folder).compare([two_phase], 0.5).trials
    for number in range(kills):
        note = folder / f"said-{number}"
        said.update(killed(append_forever, folder, note, random.uniform(0.0, WRITER_LIVES_S), trial))
    loaded = TrialStore(folder).load()
    lost = said - {each.id for each in loaded.trials}
    about = f"{len(said)} records were said to be on disk; {len(loaded.notices)} files had a torn end"
    if not said:
        raise SystemExit(f"No writer wrote anything within {WRITER_LIVES_S} s: nothing was tried; let it live longer.")
    return Claim("SIGKILLs of a writer; records lost", kills, len(lost), 0, time.monotonic() - started, about)


def kills_of_a_tuner(kills: int, folder: Path) -> Claim:
    """Kill a tuner at random moments and let another take up from there, until nothing is left to try; and again."""
    started, done, wrong, cut_short, finished = time.monotonic(), 0, 0, 0, 0
    legal = sum(1 for backend in victims() for _ in backend.space.configs(SMALL))
    for place in itertools.count():
        own, said, begun, over = folder / str(place), set[str](), Counter[str](), False
        own.mkdir(parents=True)
        while not over:
            last = done >= kills  # not killed before its search is over
            lives_s = LAST_TUNER_S if last else random.uniform(0.0, TUNER_LIVES_S)
            lines = killed(tune_and_say, own, own / f"said-{time.monotonic_ns()}", lives_s)
            done += not last
            over = any(line.startswith("round ") for line in lines)
            begun.update(line.removeprefix("started ") for line in lines if line.startswith("started "))
            said.update(line for line in lines if " " not in line)
        searched = [trial for trial in TrialStore(own).load().trials if trial.phase == "search"]
        lost = said - {trial.id for trial in searched}
        tried = [(trial.backend, config_key(trial.config)) for trial in searched]
        # A disturbed trial is measured again; that is no repetition.
        clean = [key for key, trial in zip(tried, searched, strict=True) if trial.state != "disturbed"]
        wrong += len(lost) + (legal - len(set(tried))) + (len(clean) - len(set(clean)))
        finished += len(said)
        cut_short += sum(times > 1 for times in begun.values())
        if done >= kills:
            break
    about = (
        f"{finished} trials were said to be finished, in {place + 1} searches of {legal} configurations; "
        f"{cut_short} were cut short and tried again"
    )
    name = "SIGKILLs of a tuner; trials lost, never tried again or tried twice"
    return Claim(name, kills, wrong, 0, time.monotonic() - started, about)
