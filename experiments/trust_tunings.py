"""Runs of `scanlab tune` beside a busy neighbour or with cold caches, whose choices are compared with the defaults."""

import json
import math
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import common
from trust_claim import Claim

from scanlab import settings
from scanlab.bench.context import Candidate
from scanlab.bench.objective import difference
from scanlab.bench.ranking import Comparison
from scanlab.contract import registry
from scanlab.runtime.profile import Profile
from scanlab.suites import Case, load_suite
from scanlab.tuning.selection import untuned_candidate

SUITE = "vim-tiny"
KINDS = ("beside a neighbour", "with cold caches")
Row = dict[str, Any]


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


def case_of_suite() -> Case:
    """Return the problem that is tuned, with its inputs."""
    (case,) = load_suite(SUITE)
    return case


def tuned(kind: str, seed: int, budget: str, folder: Path) -> Row:
    """Run `scanlab tune` with a profile of its own, unless it ran in `folder` before, and return the deployed choice.

    Raises:
        SystemExit: The command failed.
    """
    known = folder / "row.json"
    if known.exists():
        return dict(json.loads(known.read_text()))
    shutil.rmtree(folder, ignore_errors=True)  # of a tuning that was cut short
    folder.mkdir(parents=True)
    environment = {settings.PROFILE.name: str(folder / "profile.json")}
    if kind == "with cold caches":
        environment |= {
            settings.CACHE.name: str(folder / "kernels"),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        }
    command = [
        "tune",
        "--suite",
        SUITE,
        "--budget",
        budget,
        "--seed",
        str(seed),
        "--out",
        str(folder / "runs"),
        "--json",
    ]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "scanlab", *command], env=os.environ | environment, capture_output=True, check=False
    )
    if done.returncode not in (0, 3):
        raise SystemExit(f"scanlab {' '.join(command)} ended with {done.returncode}: {done.stderr.decode()[-2000:]}")
    (found,) = json.loads(done.stdout)
    winner = found["winner"]
    row = {
        "kind": kind,
        "seed": seed,
        "backend": "" if winner is None else winner["backend"],
        "config": "{}" if winner is None else json.dumps(winner["config"]),
        "evidence": found["evidence"],
        "tried": found["tried"],
        "took_s": time.monotonic() - started,
    }
    known.write_text(json.dumps(row))
    return row


def deployed(row: Row, folder: Path, case: Case) -> Candidate | None:
    """Return the entry of a tuning in its profile; None where the defaults go on serving."""
    path = folder / "profile.json"
    entry = Profile.load(path).exact(case.problem) if path.exists() else None
    return None if entry is None else Candidate.of(registry.get(entry.backend), entry.config, case.problem)


def held_quietly(choices: Sequence[Candidate], case: Case, seconds: float, folder: Path) -> Comparison:
    """Compare every choice with the untuned choice and with the defaults of every backend, without a neighbour.

    Raises:
        SystemExit: The machine is too busy to tell.
    """
    untuned = untuned_candidate(case.problem)
    assert untuned is not None
    able = [
        Candidate(each, each.space.defaults)
        for each in registry.load_all()[0]
        if each.unavailable() is None and each.rejects(case.problem) is None
    ]
    compared = common.compared(
        case.problem,
        case.inputs,
        case.label,
        list(dict.fromkeys([untuned, *choices, *able])),
        seconds,
        folder,
        baseline=untuned,
    )
    if not math.isfinite(compared.noise_floor):
        raise SystemExit(f"{'; '.join(compared.notices)}: the choices cannot be compared; try in a quiet hour.")
    return compared


def against_defaults(row: Row, choice: Candidate | None, compared: Comparison, untuned: Candidate) -> Row:
    """Return the row of a tuning with the time of its choice over that of the defaults, and whether that is worse."""
    if choice is None or choice == untuned:
        return row | {"over_defaults": 1.0, "low": 1.0, "high": 1.0, "worse": False}
    blocks = {each.trial.label: each.trial.measurement.blocks for each in compared.ranking}
    ratio, interval = difference(blocks[choice.label], blocks[untuned.label], "median")
    return row | {
        "over_defaults": math.exp(ratio),
        "low": math.exp(interval.low),
        "high": math.exp(interval.high),
        "worse": interval.low > 0 and ratio > compared.noise_floor,
    }


def tunings(count: int, budget: str, quiet_s: float, folder: Path) -> Iterator[tuple[Claim, list[Row]]]:
    """Tune so often beside a neighbour and so often with cold caches, then hold the choices; a claim for each kind."""
    case = case_of_suite()
    untuned = untuned_candidate(case.problem)
    assert untuned is not None
    made: list[tuple[Row, Candidate | None]] = []
    for kind in KINDS:
        with neighbour() if kind == KINDS[0] else nullcontext():
            for seed in range(count):
                own = folder / f"{kind.replace(' ', '-')}-{seed}"
                row = tuned(kind, seed, budget, own)
                made.append((row, deployed(row, own, case)))
                print(f"{kind}: {row['backend'] or 'nothing'} {row['config']} in {row['took_s']:.0f} s", flush=True)
    compared = held_quietly([choice for _, choice in made if choice is not None], case, quiet_s, folder / "held")
    for kind in KINDS:
        rows = [against_defaults(*each, compared, untuned) for each in made if each[0]["kind"] == kind]
        gone = sum(row["over_defaults"] < 1 for row in rows)
        about = (
            f"{sum(bool(row['backend']) for row in rows)} deployed a choice, {gone} of them faster than the defaults; "
            f"noise floor {math.expm1(compared.noise_floor):.1%}, {compared.clean_rounds} clean rounds, "
            f"budget {budget} for each tuning"
        )
        name = f"tunings {kind}; a choice slower than the defaults"
        yield Claim(name, count, sum(row["worse"] for row in rows), 0, sum(row["took_s"] for row in rows), about), rows
