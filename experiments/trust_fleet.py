"""Three tuners at once on one SQLite storage, killed at random moments, for the claim that no trial is lost."""

import itertools
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trust_claim import Claim
from trust_kills import LAST_TUNER_S, killed
from trust_noise import SMALL
from trust_simulated import BUDGET_S, backend, simulated

from scanlab.bench.store import TrialStore
from scanlab.contract.space import config_key
from scanlab.tuning.result import Event

TUNERS = 3
LIVES_S = 1.5
# After each trial, so that a kill can fall between two.
PAUSE_S = 0.05
CHOSE = "chose "


def tune_and_choose(folder: Path, url: str, tuner: int, note: Path) -> None:
    """Tune a made-up machine on a shared storage; log the trials on disk, and the choice with its ties."""
    with note.open("w") as file:

        def say(event: Event) -> None:
            if event.kind == "finished" and event.trial is not None:
                os.write(file.fileno(), f"{event.trial.id}\n".encode())
                time.sleep(random.uniform(0.0, PAUSE_S))

        found = simulated(tuner, folder, BUDGET_S, storage=url, on_event=say, disturbance=lambda second: None)
        labels = [found.winner.label if found.winner else "nothing", *found.tied]
        os.write(file.fileno(), f"{CHOSE}{'; '.join(labels)}\n".encode())
        time.sleep(LAST_TUNER_S)


class Fleet:
    """Tuners on one storage, each followed by another one where it is killed, until all have chosen.

    Attributes:
        kills: Number of kills.
        said: Names of the trials that were said to be on disk.
        choices: Choices, with their ties.
    """

    def __init__(self, folder: Path, kills: int) -> None:
        self._folder = folder
        self._wanted = kills
        self.kills = 0
        self.said: set[str] = set()
        self.choices: list[str] = []

    def run(self) -> None:
        """Run all tuners, and wait for them."""
        with ThreadPoolExecutor(TUNERS) as pool:
            for followed in pool.map(self._follow, range(TUNERS)):
                self.choices.append(followed)

    def _follow(self, tuner: int) -> str:
        """Run a tuner and its successors; return the choice."""
        url = f"sqlite:///{self._folder / 'studies.db'}"
        for life in itertools.count():
            is_last = self.kills >= self._wanted
            lives_s = LAST_TUNER_S if is_last else random.uniform(0.0, LIVES_S)
            note = self._folder / f"said-{tuner}-{life}"
            lines = killed(tune_and_choose, self._folder, note, lives_s, url, tuner, over=CHOSE)
            self.said.update(line for line in lines if not line.startswith(CHOSE))
            for line in lines:
                if line.startswith(CHOSE):
                    return line
            if is_last:
                break
            self.kills += 1
        raise SystemExit(f"A tuner chose nothing in {LAST_TUNER_S:.0f} s.")


def kills_of_a_fleet(kills: int, folder: Path) -> Claim:
    """Kill tuners that share a storage, and count lost trials, configurations never tried, and wrong choices."""
    started, done, wrong, said, chosen = time.monotonic(), 0, 0, 0, 0
    legal = {config_key(config) for config in backend().space.configs(SMALL)}
    place = 0
    while done < kills:
        own = folder / str(place)
        own.mkdir(parents=True)
        fleet = Fleet(own, min(kills - done, 4 * TUNERS))
        fleet.run()
        trials = [trial for tuner in range(TUNERS) for trial in TrialStore(own / str(tuner)).load().trials]
        tried = {config_key(trial.config) for trial in trials if trial.backend == backend().name}
        wrong += len(fleet.said - {trial.id for trial in trials}) + len(legal - tried)
        wrong += TUNERS - sum("chunk=64" in choice for choice in fleet.choices)
        done, said, chosen = done + fleet.kills, said + len(fleet.said), chosen + len(fleet.choices)
        place += 1
    about = (
        f"{said} trials were said to be on disk, and {chosen} choices made, in {place} searches of"
        f" {len(legal)} configurations"
    )
    name = f"SIGKILLs of {TUNERS} tuners at once on one SQLite storage; trials lost or never tried, or a wrong choice"
    return Claim(name, done, wrong, 0, time.monotonic() - started, about)
