"""The lab keeps its promises: no finished trial is lost, no difference is invented, the winner stays the winner.

Three claims, each tried for real: a writer that is killed at 200 random moments loses no record that it had
appended; of 200 races of a configuration against itself at most 5 % report a difference; ten tunings beside a
neighbour that hogs a CPU at random name the same winner, or a declared tie, every time. Takes a quarter of an hour:

    python experiments/trust.py
"""

import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from pathlib import Path

from scanlab import registry
from scanlab.lab.budget import Budget
from scanlab.lab.machine import this_machine
from scanlab.lab.prove import Setting
from scanlab.lab.race import Entrant, race
from scanlab.lab.results import Results, Trial
from scanlab.lab.tune import tune
from scanlab.problem import ScanProblem, make_inputs

OUT = Path(__file__).parents[1] / "results" / "trust"
PROBLEM = ScanProblem(batch=1, dim=384, length=197)
SMALL = ScanProblem(batch=1, dim=64, length=64)
KILLS, RACES, TUNINGS = 200, 200, 10
RACE_S, TUNING_S = 2.0, 45.0
RIVALS = ("two_phase", "chunked", "native")


def append_forever(folder: Path, trial: Trial, said: Path) -> None:
    """Append copies of `trial`, and write down the name of each once it is on disk."""
    results = Results(folder)
    with said.open("w") as file:
        while True:
            copy = Trial.from_json({**trial.to_json(), "id": os.urandom(8).hex()})
            results.append(copy)
            os.write(file.fileno(), f"{copy.id}\n".encode())


def kills(trial: Trial, folder: Path) -> dict[str, int]:
    """Kill a writer at random moments; what it said was on disk must be there."""
    folder.mkdir(parents=True)
    said: set[str] = set()
    for number in range(KILLS):
        note = folder / f"said-{number}"
        writer = multiprocessing.get_context("fork").Process(target=append_forever, args=(folder, trial, note))
        writer.start()
        time.sleep(random.uniform(0.0, 0.05))
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
        lines = note.read_text().split("\n") if note.exists() else []
        said.update(lines[:-1])  # the last may have been cut off
    loaded = Results(folder).load()
    lost = said - {each.id for each in loaded.trials}
    return {"kills": KILLS, "appended": len(said), "lost": len(lost), "torn_tails": len(loaded.notices)}


def races_against_itself(folder: Path) -> dict[str, float]:
    """Race one configuration against itself; a difference that is reported is invented."""
    setting = Setting.of(SMALL, make_inputs(SMALL), "made", seed=0)
    twins = [Entrant(registry.get("chunked"), {"threads": 1})] * 2
    anchor = Entrant(registry.get("reference"), {"threads": 1})
    told_apart = 0
    for _ in range(RACES):
        outcome = race(twins, anchor, setting, Results(folder), time.monotonic() + RACE_S)
        told_apart += not outcome.standings[1].tied
    return {"races": RACES, "told_apart": told_apart, "share": told_apart / RACES}


def hog() -> None:
    """Use a CPU in fits of random length."""
    while True:
        until = time.monotonic() + random.uniform(0.1, 4.0)
        while time.monotonic() < until:
            pass
        time.sleep(random.uniform(0.1, 4.0))


def tunings_beside_a_neighbour(folder: Path) -> dict[str, object]:
    """Tune from scratch beside a hog; every winner must be among each run's fastest that cannot be told apart."""
    neighbour = multiprocessing.Process(target=hog, daemon=True)
    neighbour.start()
    winners, contenders, notices = [], [], []
    for number in range(TUNINGS):
        backends = [registry.get(name) for name in RIVALS]
        found = tune(
            PROBLEM, make_inputs(PROBLEM), backends, Budget(TUNING_S), Results(folder / str(number)), seed=number
        )
        assert found.winner is not None
        ties = found.race.ties if found.race is not None else ()
        winners.append(found.winner.label)
        contenders.append({found.winner.backend, *(each.trial.backend for each in ties)})
        notices.append(list(found.notices))
    neighbour.kill()
    names = {label.split()[0] for label in winners}
    same = len(names) == 1 or all(names <= tied for tied in contenders)
    return {"tunings": TUNINGS, "winners": winners, "same_backend_or_tie": same, "notices": notices}


def keep(found: dict[str, object]) -> None:
    """Write down what is known so far: a run that is stopped keeps its first parts."""
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "trust.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        found: dict[str, object] = {"machine": this_machine().describe(), "load_before": os.getloadavg()[0]}
        found["races_against_itself"] = races_against_itself(place / "races")
        keep(found)
        found["kills"] = kills(Results(place / "races").load().trials[0], place / "kills")
        keep(found)
        found["tunings_beside_a_neighbour"] = tunings_beside_a_neighbour(place / "tunings")
        keep(found)
    print(json.dumps(found, indent=2))
