"""The lab keeps its promises: no finished trial is lost, no difference is invented, the winner stays the winner.

Of 200 SIGKILLs at random moments, half of a writer and half of a tuning process whose successor takes up from there,
none loses a record that was said to be on disk, and what was running is tried again. Of comparisons of one
configuration with itself at most 5 % report a difference: some are run, and 200 are drawn from recorded noise of this
machine. In 100 simulated tunings with injected artefacts (samples 5 to 20 times too fast or too slow, stretches that
are disturbed) the true winner is chosen or declared a tie, and in 100 that are interrupted, starved or kept busy,
nothing weaker replaces a choice. Backends with planted faults are caught by `scanlab verify` and by the contract
test. Ten tunings of the vim-tiny suite from scratch, beside a neighbour that hogs a CPU at random, name the same
configuration, or a tie within the noise floor, every one beside every other:

    python experiments/trust.py
"""

import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import common
import pandas as pd
import trust_faults
import typer

from scanlab.bench.clock import MeasuringClock, QuietWait
from scanlab.bench.compare import MAX_ROUNDS, MIN_ROUNDS, Comparer
from scanlab.bench.context import BenchmarkContext, Candidate
from scanlab.bench.ranking import decided, noise_floor, places
from scanlab.bench.records import Trial
from scanlab.bench.samples import Block
from scanlab.bench.simulated_worker import SimulatedTime, SimulatedWorker
from scanlab.bench.store import TrialStore
from scanlab.bench.worker import LocalWorker
from scanlab.cli.duration import parse_duration
from scanlab.contract import registry
from scanlab.contract.backend import Backend, at_most
from scanlab.contract.evidence import EvidenceRank
from scanlab.contract.machine import this_machine
from scanlab.contract.problem import ScanProblem, make_inputs
from scanlab.contract.space import config_key
from scanlab.suites import load_suite
from scanlab.tuning.result import Event, TuningResult
from scanlab.tuning.scheduler import Budget
from scanlab.tuning.tune import tune

SMALL = ScanProblem(batch=1, dim=64, length=64)
VICTIMS = ("chunked", "associative")
TWINS = ("chunked", "two_phase")
RACE_S, NOISE_S = 4.0, 12.0
WRITER_LIVES_S, TUNER_LIVES_S = 0.05, 2.0
PARTS = ("kills", "races", "simulated", "faults", "tunings")
ARTEFACT_SHARE = 0.1
LAST_TUNER_S = 120.0
ALLOWED_SHARE = 0.05


class Claim(NamedTuple):
    """A row of the page: what was tried how often, how often it went wrong, and how often it may."""

    claim: str
    tried: int
    wrong: int
    allowed: int
    seconds: float
    said: str
    setting: str = ""

    @property
    def holds(self) -> bool:
        return self.wrong <= self.allowed and self.tried > 0


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
    """Tune a small problem; write down what is begun, what is on disk, and that the search is over."""
    with note.open("w") as file:

        def say(event: Event) -> None:
            if event.kind == "finished" and event.trial is not None:
                os.write(file.fileno(), f"{event.trial.id}\n".encode())
            if event.kind in ("started", "round"):
                os.write(file.fileno(), f"{event.kind} {event.label}\n".encode())
            if event.kind == "round":
                time.sleep(LAST_TUNER_S)

        tune(SMALL, make_inputs(SMALL), victims(), Budget(trials=10_000), TrialStore(folder), on_event=say)


def killed(work: Callable[..., None], folder: Path, note: Path, lives_s: float, *given: object) -> list[str]:
    """Return the whole lines that `work` wrote before it was killed, after `lives_s` or once its search was over."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["scanlab.tuning.tune", "trust"])
    victim = server.Process(target=work, args=(folder, *given, note))
    victim.start()
    while victim.is_alive() and not note.exists():
        time.sleep(0.001)
    until = time.monotonic() + lives_s
    while time.monotonic() < until and not (note.exists() and "round " in note.read_text()):
        time.sleep(random.uniform(0.0, min(0.02, lives_s)))
    assert victim.pid is not None
    assert victim.is_alive(), f"{work.__name__} ended by itself: status {victim.exitcode}"
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    return note.read_text().split("\n")[:-1]  # what follows the last line end was cut off


def kills_of_a_writer(kills: int, folder: Path) -> Claim:
    """Kill a writer at random moments; what it said was on disk must be there."""
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
            last = done >= kills  # nobody kills it before its search is over
            lives_s = LAST_TUNER_S if last else random.uniform(0.0, TUNER_LIVES_S)
            lines = killed(tune_and_say, own, own / f"said-{time.monotonic_ns()}", lives_s)
            done += not last
            over = any(line.startswith("round ") for line in lines)
            begun.update(line.removeprefix("started ") for line in lines if line.startswith("started "))
            said.update(line for line in lines if " " not in line)
        searched = [trial for trial in TrialStore(own).load().trials if trial.phase == "search"]
        lost = said - {trial.id for trial in searched}
        tried = [(trial.backend, config_key(trial.config)) for trial in searched]
        # What other work disturbed is measured again; that is no repetition.
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


def comparer_of(candidate: Candidate, folder: Path) -> Comparer:
    """Return a comparer of candidates of this process on the small problem."""
    context = BenchmarkContext.of(SMALL, make_inputs(SMALL), "made", seed=0)
    clock = MeasuringClock()
    worker = LocalWorker(context)
    worker.prepare(candidate)
    return Comparer(context, worker, TrialStore(folder), clock, QuietWait(RACE_S, clock, worker.disturbance))


def copies(name: str, count: int) -> list[Candidate]:
    """Return one configuration under several names."""
    backend = registry.get(name)
    named = [dataclasses.replace(backend, name=f"{name}_{number}") for number in range(count)]
    return [Candidate(each, backend.space.defaults | {"threads": 1}) for each in named]


def races_run(races: int, folder: Path) -> Claim:
    """Compare one configuration with itself; a difference that is reported is invented."""
    started, invented, rounds = time.monotonic(), 0, 0
    for number in range(races):
        twins = copies(TWINS[number % len(TWINS)], 2)
        outcome = comparer_of(twins[0], folder).compare(twins, RACE_S)
        invented += any(each.place.distinguishable for each in outcome.ranking)
        rounds += outcome.clean_rounds
    about = f"{rounds / max(1, races):.0f} clean rounds each on average"
    allowed = int(ALLOWED_SHARE * races)
    return Claim("comparisons with itself; differences", races, invented, allowed, time.monotonic() - started, about)


def races_drawn(races: int) -> Claim:
    """Draw comparisons of one configuration with itself from long recorded rounds of three that are alike.

    Each takes consecutive rounds from a random one on, and who of the three is whom is random: what drifts or stays
    apart in the record does so in the comparison.
    """
    started = time.monotonic()
    noise = [recorded_noise(name) for name in TWINS]
    invented = sum(differs(noise[number % len(noise)], random.Random(number)) for number in range(races))
    about = f"from {', '.join(str(len(series[0])) for series in noise)} recorded rounds"
    allowed = int(ALLOWED_SHARE * races)
    return Claim(
        "comparisons drawn from noise; differences", races, invented, allowed, time.monotonic() - started, about
    )


def recorded_noise(name: str) -> list[list[Block]]:
    """Return the blocks of three copies of one configuration, in rounds for NOISE_S."""
    worker = LocalWorker(BenchmarkContext.of(SMALL, make_inputs(SMALL), "made", seed=0))
    candidates = copies(name, 3)
    for each in candidates:
        worker.prepare(each)
    until, rounds = time.monotonic() + NOISE_S, []
    while not rounds or time.monotonic() < until:
        rounds.append(worker.take_round(candidates, candidates[0], len(rounds)))
    return [list(series) for series in zip(*rounds, strict=True)]


def differs(noise: Sequence[Sequence[Block]], rng: random.Random) -> bool:
    """Return whether a comparison out of `noise`, as long as it takes to decide, shows a difference."""
    series = list(noise)
    rng.shuffle(series)
    total = len(series[0])
    first = rng.randrange(total)
    order = [(first + step) % total for step in range(min(MAX_ROUNDS, total))]
    shown = False
    for rounds in range(min(MIN_ROUNDS, total), len(order) + 1):
        one, other, control = (numbered([blocks[index] for index in order[:rounds]]) for blocks in series)
        floor = noise_floor(control, one)
        shown = any(place.distinguishable for place in places([one, other], floor))
        if decided([one, other], floor):
            break
    return shown


def numbered(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Return the blocks with their positions as their rounds."""
    return tuple(dataclasses.replace(block, round=number) for number, block in enumerate(blocks))


def simulated(seed: int, folder: Path, seconds: float, **options: Any) -> TuningResult:
    """Tune a made-up machine on which a tenth of the samples are artefacts; chunk=64 is the fastest by a fifth."""
    rng = random.Random(seed)

    def sample_ns(candidate: Candidate, noise: random.Random) -> float:
        slow = {"reference": 40.0}.get(candidate.backend.name, 1.0 if candidate.config.get("chunk") == 64 else 1.2)
        artefact = rng.uniform(5, 20) ** rng.choice((-1, 1)) if rng.random() < ARTEFACT_SHARE else 1.0
        return 1e6 * slow * artefact * (1 + abs(noise.gauss(0, 0.01)))

    source = SimulatedTime()
    worker = SimulatedWorker(source, sample_ns, seed=seed, disturbance=options.pop("disturbance", occasionally))
    return tune(
        SMALL,
        make_inputs(SMALL),
        [at_most(registry.get("chunked"), 1)],
        Budget(seconds),
        TrialStore(folder / str(seed)),
        seed=seed,
        clock=MeasuringClock(source),
        open_worker=worker.open,
        **options,
    )


def occasionally(second: float) -> str | None:
    """Return a disturbance for a fifth of the time."""
    return "another process" if second % 3.0 > 2.4 else None


def artefacts(tunings: int, folder: Path) -> Claim:
    """Tune with artefacts; the true winner must be chosen, or declared a tie."""
    started, wrong = time.monotonic(), 0
    for seed in range(tunings):
        found = simulated(seed, folder, 60.0)
        labels = {found.winner.label if found.winner else "", *found.tied}
        wrong += not any("chunk=64" in label for label in labels)
    about = f"{ARTEFACT_SHARE:.0%} of the samples 5 to 20 times too fast or slow, a fifth of the time disturbed"
    return Claim("tunings with artefacts; a wrong winner", tunings, wrong, 0, time.monotonic() - started, about)


def cut_short(tunings: int, folder: Path) -> Claim:
    """Interrupt, starve or disturb tunings; what comes out must not replace a choice that was held out."""
    started, wrong = time.monotonic(), 0
    legal = sum(1 for _ in at_most(registry.get("chunked"), 1).space.configs(SMALL))
    for seed in range(tunings):
        rng = random.Random(seed)

        starts, last = itertools.count(1), rng.randint(1, legal)

        def interrupt(event: Event, starts: Iterator[int] = starts, last: int = last) -> None:
            if event.kind == "started" and next(starts) == last:
                raise KeyboardInterrupt

        kinds: tuple[dict[str, Any], ...] = (
            {"seconds": 60.0, "on_event": interrupt},
            {"seconds": 0.05},
            {"seconds": 5.0, "disturbance": lambda second: "another process"},
        )
        found = simulated(seed, folder, **kinds[seed % len(kinds)])
        wrong += found.evidence.may_replace(EvidenceRank.HOLDOUT)
    about = "interrupted, without time, or disturbed throughout, in turn"
    return Claim("tunings cut short; replaced stronger evidence", tunings, wrong, 0, time.monotonic() - started, about)


def planted_faults() -> tuple[Claim, list[dict[str, str]]]:
    """Plant faults into a backend; `scanlab verify` and the contract test must each catch every one."""
    started, rows = time.monotonic(), list(trust_faults.rows())
    missed = sum(not (row["verify"] and row["contract test"]) for row in rows)
    about = f"{len(trust_faults.FAULTS)} kinds of faults, in backends with and without gradients"
    return Claim("planted faults; not caught", len(rows), missed, 0, time.monotonic() - started, about), rows


def hog() -> None:
    """Use a CPU in fits of random length."""
    while True:
        until = time.monotonic() + random.uniform(0.1, 4.0)
        while time.monotonic() < until:
            pass
        time.sleep(random.uniform(0.1, 4.0))


@contextmanager
def neighbour() -> Iterator[None]:
    """Run a hog while the block runs."""
    process = multiprocessing.get_context("forkserver").Process(target=hog, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def tunings_beside_a_neighbour(tunings: int, seconds: float, folder: Path) -> Iterator[tuple[Claim, dict[str, Any]]]:
    """Tune from scratch beside a hog; after each one the claim as it stands, and its row."""
    started, (case,) = time.monotonic(), load_suite("vim-tiny")
    rows: list[dict[str, Any]] = []
    backends, _ = registry.load_all()
    with neighbour():
        for number in range(tunings):
            place = TrialStore(folder / str(number))
            found = tune(
                case.problem, case.inputs, backends, Budget(seconds), place, inputs_label=case.label, seed=number
            )
            winner = found.winner
            timed = winner.measurement if winner is not None else None
            rows.append(
                {
                    "seed": number,
                    "winner": "none" if winner is None else winner.label,
                    "phase": "" if winner is None else winner.phase,
                    "ms": None if timed is None else timed.median_ms,
                    "speedup": None if timed is None else timed.speedup,
                    "tied": sorted(found.tied),
                    "noise_floor": math.inf if found.comparison is None else found.comparison.noise_floor,
                    "tried": len(found.trials),
                    "took_s": found.elapsed_s,
                    "notices": list(found.notices),
                }
            )
            pairs = list(itertools.combinations(rows, 2))
            apart = sum(not agree(*pair) for pair in pairs) + sum(row["winner"] == "none" for row in rows)
            names = len({row["winner"] for row in rows})
            about = f"{len(rows)} tunings of {seconds:.0f} s named {names} configurations, {apart} pairs not tied"
            name = "pairs of tunings beside a hog; neither the same winner nor a declared tie"
            yield Claim(name, len(pairs), apart, 0, time.monotonic() - started, about), rows[-1]


def agree(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two tunings name the same winner, or winners within the larger noise floor of the two.

    The speed-ups that each measured must agree, so that a run that measured too little is no tie.
    """
    if "none" in (one["winner"], other["winner"]):
        return False
    if one["winner"] == other["winner"]:
        return True
    declared = one["winner"] in other["tied"] or other["winner"] in one["tied"]
    apart = abs(math.log(one["speedup"] / other["speedup"]))
    return declared and apart <= max(one["noise_floor"], other["noise_floor"])


def write(claims: Sequence[Claim], rows: Sequence[dict[str, Any]], faults: Sequence[dict[str, str]], out: Path) -> None:
    """Write the page of what is known so far, with the numbers as CSV and every tuning in full as JSON."""
    numbers = pd.DataFrame([{**claim._asdict(), "holds": claim.holds} for claim in claims])
    caption = "; ".join(dict.fromkeys(claim.setting for claim in claims))
    shown = numbers.drop(columns="setting").assign(
        holds=numbers.holds.map({True: "yes", False: "NO"}), seconds=numbers.seconds.map("{:.0f}".format)
    )
    sections = {"Claims": shown.astype(str)}
    if faults:
        sections["Planted faults, and the first problem that shows each"] = pd.DataFrame(faults)
    if rows:
        columns = ["seed", "winner", "phase", "ms", "speedup", "tried", "took_s"]
        tunings = pd.DataFrame(rows).assign(
            tied=[", ".join(row["tied"]) or "nothing" for row in rows],
            **{name: [f"{row[name]:.3g}" for row in rows] for name in ("ms", "speedup", "took_s")},
        )
        sections["Tunings"] = tunings[[*columns, "tied"]].astype(str)
    common.write_page(out, __doc__, caption, {}, sections, numbers)
    record = {"claims": [claim._asdict() for claim in claims], "tunings": list(rows), "faults": list(faults)}
    record["machine"] = this_machine().to_json()
    record_file(out).write_text(json.dumps(record, indent=2) + "\n")


def record_file(out: Path) -> Path:
    """Return the file of all that is known on this kind of machine."""
    return out / f"{out.name}-{common.silicon_name()}.json"


def known(out: Path) -> tuple[list[Claim], list[dict[str, Any]], list[dict[str, str]]]:
    """Return the claims, the tunings and the faults that were tried before on this kind of machine."""
    file = record_file(out)
    record = json.loads(file.read_text()) if file.exists() else {}
    return [Claim(**claim) for claim in record.get("claims", ())], record.get("tunings", []), record.get("faults", [])


def main(
    parts: Annotated[str, typer.Option(help="Separated by commas; the others stay as they were found.")] = ",".join(
        PARTS
    ),
    kills: Annotated[int, typer.Option(help="SIGKILLs in all.")] = 200,
    races: Annotated[int, typer.Option(help="Comparisons drawn from recorded noise.")] = 200,
    real: Annotated[int, typer.Option(help="Comparisons that are run.")] = 40,
    simulations: Annotated[int, typer.Option(help="Simulated tunings of each kind.")] = 100,
    tunings: Annotated[int, typer.Option(help="Tunings beside the neighbour.")] = 10,
    budget: Annotated[str, typer.Option(help="Of each tuning.")] = "54s",
    out: Path = common.RESULTS / "trust",
) -> None:
    """Try the claims one after the other, and write the page after each; exit code 1 where one does not hold."""
    asked = parts.split(",")
    if unknown := set(asked) - set(PARTS):
        raise SystemExit(f"--parts {', '.join(sorted(unknown))}: must be some of {', '.join(PARTS)}")
    setting = common.setting()
    claims, rows, faults = known(out)
    if "tunings" in asked:
        rows.clear()

    def keep(claim: Claim) -> None:
        print(f"{claim.claim}: {claim.wrong} of {claim.tried} in {claim.seconds:.0f} s; {claim.said}", flush=True)
        by_name = {each.claim: each for each in claims} | {claim.claim: claim._replace(setting=setting)}
        claims[:] = by_name.values()
        write(claims, rows, faults, out)

    with tempfile.TemporaryDirectory(prefix="scanlab-trust-") as name:
        place = Path(name)
        if "kills" in asked:
            keep(kills_of_a_writer(kills // 2, place / "writer"))
            keep(kills_of_a_tuner(kills - kills // 2, place / "tuner"))
        if "races" in asked:
            keep(races_run(real, place / "races"))
            keep(races_drawn(races))
        if "simulated" in asked:
            keep(artefacts(simulations, place / "artefacts"))
            keep(cut_short(simulations, place / "cut-short"))
        if "faults" in asked:
            claim, faults[:] = planted_faults()
            keep(claim)
        if "tunings" in asked:
            for claim, row in tunings_beside_a_neighbour(tunings, parse_duration(budget), place / "tunings"):
                rows.append(row)
                keep(claim)
    failed = [claim.claim for claim in claims if not claim.holds]
    if failed:
        raise SystemExit(f"the claim does not hold: {'; '.join(failed)}")


if __name__ == "__main__":
    typer.run(main)
