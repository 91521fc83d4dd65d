"""Options of `scanlab tune` that are passed on together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scanlab.bench.objective import Objective
from scanlab.cli.duration import spell_duration
from scanlab.contract.backend import Backend


@dataclass(frozen=True)
class TuneOptions:
    """Options that problems and whole models share.

    Attributes:
        objective: Statistic of the time by which candidates are ranked.
        results: Folder of the records and of the report.
        seed: Seed of the inputs and of the search.
        deploys: Put the winners into this machine's profile.
        as_json: Print JSON instead of tables.
        raw: Include every sample in the JSON.
    """

    objective: Objective
    results: Path
    seed: int
    deploys: bool
    as_json: bool
    raw: bool


@dataclass(frozen=True)
class SearchOptions:
    """Options of the search over the configurations of a problem.

    Attributes:
        backends: Backends whose configurations are searched.
        budget_s: Time of all problems together, without builds and report; None where only `trials` ends a search.
        trials: Number of configurations to search per problem; None where only the budget ends a search.
        storage: Where the studies are; None for a file in the folder of the results.
        max_error: Largest error of a winner against float64, as a share of the largest value.
    """

    backends: list[Backend]
    budget_s: float | None
    trials: int | None
    storage: str | None
    max_error: float

    @property
    def budget(self) -> str:
        """Budget in words."""
        return f"configurations: {self.trials}" if self.budget_s is None else spell_duration(self.budget_s)
