"""`scanlab tune` of problems: search each, deploy its winner, and time its best over the length."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from rich.markup import escape

from scanlab.bench.clock import MeasuringClock
from scanlab.bench.compare import sweep_lengths
from scanlab.bench.context import Candidate
from scanlab.bench.process_worker import ProcessWorker, open_worker
from scanlab.bench.store import TrialStore
from scanlab.cli.console import notes, out, print_json
from scanlab.cli.finished import FinishedTunings
from scanlab.cli.tune_options import SearchOptions, TuneOptions
from scanlab.cli.tuning_output import as_json as tuning_as_json
from scanlab.cli.tuning_output import progress, say_why, show
from scanlab.contract.backend import Backend
from scanlab.suites import Case
from scanlab.tuning.build_times import BuildTimes
from scanlab.tuning.result import TuningResult
from scanlab.tuning.scheduler import Budget
from scanlab.tuning.selection import deployed_candidate, untuned_candidate
from scanlab.tuning.tune import tune as tune_problem
from scanlab_kernels.build import cache_folder

# Share of the budget for the time against the length, where that is long enough to start with.
LENGTHS_SHARE = 0.15
MIN_SWEEP_S = 4.0
# Starting the command is part of the budget, as long as this share is left for the tuning.
MIN_SHARE = 0.5
# The time against the length, after a search that was given a number of trials and no time.
SWEEP_S = 30.0


def tune_cases(
    cases: Sequence[Case],
    store: TrialStore,
    worker: ProcessWorker,
    search: SearchOptions,
    options: TuneOptions,
    spent_s: float,
    finished: FinishedTunings,
) -> None:
    """Tune the problems one after the other, until a person interrupts.

    Args:
        cases: Problems with their inputs.
        store: Where trials are recorded.
        worker: Started worker, for the first problem.
        search: Options of the search; the problems share the budget equally.
        options: Options of the command.
        spent_s: Time since the command was started, which is part of the budget.
        finished: Takes the result of each problem as soon as it is there.

    Raises:
        KeyboardInterrupt: It was interrupted between two tunings, or after one.
    """
    budget_s = search.budget_s
    share_s = None if budget_s is None else max(budget_s - spent_s, MIN_SHARE * budget_s) / len(cases)
    sweep_s = SWEEP_S if share_s is None else LENGTHS_SHARE * share_s
    sweeps = sweep_s >= MIN_SWEEP_S
    search_s = None if share_s is None else share_s - (sweep_s if sweeps else 0.0)
    for number, case in enumerate(cases):
        if not options.as_json:
            out.print(f"[bold]{case.problem.key}[/]  ({case.label})")
        with progress(options.as_json) as on_event:
            found = tune_problem(
                case.problem,
                case.inputs,
                search.backends,
                Budget(search_s, search.trials),
                store,
                inputs_label=case.label,
                storage=search.storage,
                untuned=untuned_candidate(case.problem),
                deployed=deployed_candidate(case.problem),
                max_error=search.max_error,
                objective=options.objective,
                seed=options.seed,
                on_event=on_event,
                build_times=BuildTimes(cache_folder()),
                open_worker=open_worker if number else partial(open_worker, started=worker),
            )
            finished.add([found], [] if found.entry is None else [found.entry])
        if not options.as_json:
            show(found)
        if found.interrupted:
            raise KeyboardInterrupt
        if sweeps:
            begun = time.monotonic()
            is_swept = _sweep(found, search.backends, store, sweep_s, options.seed)
            if is_swept and not options.as_json:
                out.print(f"Took {time.monotonic() - begun:.0f} s more for the time against {case.problem.swept}.")


def report_tunings(finished: FinishedTunings, options: TuneOptions, interrupted: bool) -> None:
    """Write the report, print the choices, and end the command.

    Raises:
        typer.Exit: The command was interrupted, or no problem has a winner.
    """
    written = finished.write_report()
    if options.as_json:
        print_json([tuning_as_json(*each, options.raw) for each in finished.tunings])
    else:
        finished.say_where(written)
        for found, _ in finished.tunings:
            if len(finished.tunings) > 1:
                out.print(f"[bold]{escape(found.problem.key)}[/]")
            say_why(found.why, found.winner is not None)
    finished.end(interrupted, any(found.winner for found, _ in finished.tunings))


def _sweep(found: TuningResult, backends: list[Backend], store: TrialStore, seconds: float, seed: int) -> bool:
    """Time the best configuration of every backend over the size that the op sweeps; return whether it was done."""
    if found.comparison is None or found.winner is None or not found.problem.swept:
        return False
    by_name = {backend.name: backend for backend in backends}
    best = {each.trial.backend: each.trial for each in reversed(found.comparison.ranking)}
    candidates = [Candidate(by_name[name], dict(trial.config)) for name, trial in best.items() if name in by_name]
    with notes.status(f"time against {found.problem.swept}") as status:
        sweep_lengths(
            found.problem,
            candidates,
            store,
            MeasuringClock(),
            seconds,
            seed,
            on_length=lambda length: status.update(f"time against {found.problem.swept}: {length}"),
        )
    return True
