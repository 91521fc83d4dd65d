"""Tunings of a made-up machine, for the claims on artefacts and on tunings that are cut short."""

import dataclasses
import itertools
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from trust_claim import Claim
from trust_noise import SMALL

from scanlab.bench.clock import MeasuringClock
from scanlab.bench.context import Candidate
from scanlab.bench.simulated_worker import SimulatedTime, SimulatedWorker
from scanlab.bench.store import TrialStore
from scanlab.contract import registry
from scanlab.contract.backend import Backend, at_most
from scanlab.contract.evidence import EvidenceRank
from scanlab.contract.problem import make_inputs
from scanlab.runtime.deployment import deploy
from scanlab.runtime.profile import Profile, ProfileEntry
from scanlab.tuning.result import Event, TuningResult
from scanlab.tuning.scheduler import Budget
from scanlab.tuning.tune import tune

# Of the samples, in quiet and in disturbed stretches: in these the median of a block is often an artefact.
ARTEFACT_SHARE, DISTURBED_SHARE = 0.1, 0.6
BUDGET_S, STARVED_S, BUSY_S = 60.0, 0.05, 5.0
# A simulated tuning takes about half a second.
LIVES_S = 1.0
# Phases of a trial, and so ranks of the evidence, that a choice in service may rest on.
PHASES = ("search", "comparison", "holdout")


class CutShort(NamedTuple):
    """Tunings that came out cut short: those that chose nothing, and those whose choice was refused."""

    tried: int
    lowered: int
    without_choice: int
    refused: int


def backend() -> Backend:
    """Return the backend that is tuned."""
    return at_most(registry.get("chunked"), 1)


def simulated(seed: int, folder: Path, seconds: float, **options: Any) -> TuningResult:
    """Tune a made-up machine whose samples are artefacts now and then; chunk=64 is the fastest by a fifth."""
    rng = random.Random(seed)
    source = SimulatedTime()
    disturbance = options.pop("disturbance", occasionally)

    def sample_ns(candidate: Candidate, noise: random.Random) -> float:
        slow = {"reference": 40.0}.get(candidate.backend.name, 1.0 if candidate.config.get("chunk") == 64 else 1.2)
        share = DISTURBED_SHARE if disturbance(source.seconds) else ARTEFACT_SHARE
        artefact = rng.uniform(5, 20) ** rng.choice((-1, 1)) if rng.random() < share else 1.0
        return 1e6 * slow * artefact * (1 + abs(noise.gauss(0, 0.01)))

    worker = SimulatedWorker(source, sample_ns, seed=seed, disturbance=disturbance)
    return tune(
        SMALL,
        make_inputs(SMALL),
        [backend()],
        Budget(seconds),
        TrialStore(folder / str(seed)),
        seed=seed,
        clock=MeasuringClock(source),
        open_worker=worker.open,
        **options,
    )


def occasionally(second: float) -> str | None:
    """Return a disturbance for half of the time."""
    return "another process" if second % 0.24 > 0.12 else None


def artefacts(tunings: int, folder: Path) -> Claim:
    """Tune with artefacts; the true winner must be chosen, or declared a tie."""
    started, wrong, hijacked = time.monotonic(), 0, 0
    for seed in range(tunings):
        found = simulated(seed, folder, BUDGET_S)
        labels = {found.winner.label if found.winner else "", *found.tied}
        wrong += not any("chunk=64" in label for label in labels)
        fastest = min(found.trials, key=lambda trial: min(block.log_ratio for block in trial.measurement.blocks))
        hijacked += fastest.config["chunk"] != 64
    about = (
        f"{ARTEFACT_SHARE:.0%} of the samples 5 to 20 times too fast or slow, and {DISTURBED_SHARE:.0%} "
        f"in the half of the time that is disturbed; "
        f"the fastest block would have chosen wrong in {hijacked}"
    )
    return Claim("tunings with artefacts; a wrong winner", tunings, wrong, 0, time.monotonic() - started, about)


def cut_short(tunings: int, folder: Path) -> Claim:
    """Cut tunings short in each of four ways, and deploy the results; no rank of a choice may be lowered."""
    started = time.monotonic()
    strongest = simulated(0, folder / "undisturbed", BUDGET_S).entry
    if strongest is None or strongest.rank is not EvidenceRank.HOLDOUT:
        raise SystemExit("The undisturbed tuning was not held out: nothing can be compared with it.")
    ways = {
        "interrupted": lambda seed, own: simulated(seed, own, BUDGET_S, on_event=interrupting(seed)),
        "starved": lambda seed, own: simulated(seed, own, STARVED_S),
        "kept busy": lambda seed, own: simulated(seed, own, BUSY_S, disturbance=lambda second: "another process"),
    }
    found = {name: deployed_after(way, tunings, strongest, folder / name) for name, way in ways.items()}
    found["killed"] = deployed_after_kills(tunings, strongest, folder / "killed")
    about = "; ".join(
        f"{each.tried} {name}: {each.without_choice} chose nothing, {each.refused} were refused"
        for name, each in found.items()
    )
    name = "tunings interrupted, starved, kept busy or killed; the rank of a choice lowered"
    tried, lowered = sum(each.tried for each in found.values()), sum(each.lowered for each in found.values())
    return Claim(name, tried, lowered, 0, time.monotonic() - started, about)


def interrupting(seed: int) -> Callable[[Event], None]:
    """Return a listener that interrupts a tuning at a random trial or round of it."""
    events, last = itertools.count(1), random.Random(seed).randint(1, 60)

    def listen(event: Event) -> None:
        if event.kind in ("started", "round") and next(events) == last:
            raise KeyboardInterrupt

    return listen


def serving(phase: str, strongest: ProfileEntry, path: Path) -> EvidenceRank:
    """Let a profile serve a choice whose trial is of this phase, and return the rank of its evidence."""
    evidence = {**strongest.evidence, "trial": {**strongest.evidence["trial"], "phase": phase}}
    entry = dataclasses.replace(strongest, evidence=evidence)
    Profile.empty().with_entry(entry).save(path)
    return entry.rank


def rank_in(path: Path) -> EvidenceRank:
    """Return the rank of a profile's choice for the small problem; that of nothing where it has no entry."""
    entry = Profile.load(path).exact(SMALL)
    return EvidenceRank.NONE if entry is None else entry.rank


def deployed_after(
    way: Callable[[int, Path], TuningResult], tunings: int, strongest: ProfileEntry, folder: Path
) -> CutShort:
    """Tune in this way, deploy the result, and count."""
    lowered = without_choice = refused = 0
    path = folder / "profile.json"
    for seed in range(tunings):
        before = serving(PHASES[seed % len(PHASES)], strongest, path)
        entry = way(seed, folder).entry
        if entry is None:
            without_choice += 1
        else:
            refused += not deploy([entry], path).deployed
        lowered += rank_in(path) < before
    return CutShort(tunings, lowered, without_choice, refused)


def deployed_after_kills(tunings: int, strongest: ProfileEntry, folder: Path) -> CutShort:
    """Kill processes that tune and deploy at random moments, and count."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["scanlab.tuning.tune", "trust_simulated"])
    lowered = without_choice = 0
    path = folder / "profile.json"
    for seed in range(tunings):
        before = serving(PHASES[seed % len(PHASES)], strongest, path)
        written = path.stat().st_mtime_ns
        victim = server.Process(target=tune_and_deploy, args=(seed, folder, path))
        victim.start()
        while victim.is_alive() and not note(folder, seed).exists():
            time.sleep(0.001)
        time.sleep(random.Random(seed).uniform(0.0, LIVES_S))
        if not victim.is_alive():
            raise SystemExit(f"The tuning that was to be killed ended by itself: status {victim.exitcode}.")
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        without_choice += path.stat().st_mtime_ns == written
        lowered += rank_in(path) < before
    return CutShort(tunings, lowered, without_choice, 0)


def note(folder: Path, seed: int) -> Path:
    """Return the file that says that a victim is at work."""
    return folder / f"begun-{seed}"


def tune_and_deploy(seed: int, folder: Path, path: Path) -> None:
    """Tune with little time and deploy the result, again and again, until the process is killed."""
    note(folder, seed).touch()
    found = simulated(seed, folder, BUDGET_S / 20)
    while True:
        deploy([] if found.entry is None else [found.entry], path)
