"""Finished tunings of `scanlab tune`: deployed and recorded at once, so that no later interruption loses it."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.markup import escape

from scanlab.bench.store import TrialStore
from scanlab.cli.console import Exit, notes, out
from scanlab.cli.report import REPORT, write
from scanlab.contract.base import Problem
from scanlab.contract.machine import this_machine
from scanlab.errors import ProfileError
from scanlab.report.decision import TuningDecision, save_decisions
from scanlab.report.select import select
from scanlab.runtime.deployment import deploy
from scanlab.runtime.profile import ProfileEntry
from scanlab.tuning.fleet.storage_name import mask_words
from scanlab.tuning.result import TuningResult


class FinishedTunings:
    """Tunings of one command that are finished, with the decision of each.

    Args:
        store: Has the records, and takes the decisions and the report.
        deploys: Put the winners into this machine's profile.
        budget: Budget of all tunings, in words.

    Attributes:
        tunings: Results and decisions, in the order in which they were finished.
        profile: The profile where it was written.
    """

    def __init__(self, store: TrialStore, deploys: bool, budget: str) -> None:
        self.tunings: list[tuple[TuningResult, TuningDecision]] = []
        self.profile: Path | None = None
        self._store = store
        self._deploys = deploys
        self._budget = budget
        self._failure: ProfileError | None = None

    def add(self, found: Sequence[TuningResult], entries: Sequence[ProfileEntry]) -> None:
        """Deploy `entries` and save the decision of each tuning; an interruption waits for the end of it.

        Args:
            found: Results of tunings.
            entries: Those of their winners that are to serve.
        """
        with _uninterrupted():
            served = self._deploy(entries) if self._deploys and entries else frozenset()
            command = shlex.join(["scanlab", *mask_words(sys.argv[1:])])
            decisions = [
                TuningDecision.of(
                    each,
                    this_machine(),
                    deployed=each.problem in served,
                    command=command,
                    budget=self._budget,
                )
                for each in found
            ]
            self.tunings += zip(found, decisions, strict=True)
            save_decisions(decisions, self._store.folder)

    def write_report(self) -> list[Path]:
        """Write the report of the records; nothing where this machine has no trials yet, as after an early Ctrl-C."""
        trials = self._store.load().trials
        if not select(trials, this_machine()).trials:
            return []
        folder = self._store.folder
        try:
            return write(trials, folder / REPORT, folder)
        except KeyboardInterrupt:
            cure = shlex.join(["scanlab", "report", str(folder)])
            notes.print(
                f"interrupted while the report was written: everything else is done; `{escape(cure)}` writes it."
            )
            raise typer.Exit(Exit.INTERRUPTED) from None

    def say_where(self, written: Sequence[Path], effect: str = "which serves from now on") -> None:
        """Print the files of the report, and the profile with the `effect` of its change."""
        for path in written:
            if path.suffix in (".md", ".html", ".png"):
                out.print(f"wrote {path}")
        if self.profile is not None:
            out.print(f"wrote {self.profile}, {effect}")

    def end(self, interrupted: bool, has_winner: bool) -> None:
        """End the command with its exit code where it did not reach its goal; else do nothing.

        Raises:
            ProfileError: The profile could not be written.
            typer.Exit: It was interrupted, or has no winner.
        """
        if interrupted:
            notes.print("interrupted: everything measured is kept; run the same command again to go on.")
            raise typer.Exit(Exit.INTERRUPTED)
        if self._failure is not None:
            raise self._failure
        if not has_winner:
            raise typer.Exit(Exit.CANNOT_RUN)

    def _deploy(self, entries: Sequence[ProfileEntry]) -> frozenset[Problem]:
        """Deploy `entries`, print why some are refused, and return the problems of the others."""
        try:
            deployment = deploy(entries)
        except ProfileError as error:  # raised at the end: the records and the report matter as much
            self._failure = error
            return frozenset()
        for notice in deployment.notices:
            notes.print(f"[yellow]note:[/] {escape(notice)}")
        if deployment.deployed:
            self.profile = deployment.path
        return frozenset(each.problem for each in deployment.deployed)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the end of the block."""
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, frame: held.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if held:
        raise KeyboardInterrupt
