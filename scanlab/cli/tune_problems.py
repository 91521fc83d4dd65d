"""`scanlab tune` of problems: search each, time its best over the length, report, and deploy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from scanlab.bench.clock import MeasuringClock
from scanlab.bench.compare import sweep_lengths
from scanlab.bench.context import Candidate
from scanlab.bench.process_worker import ProcessWorker, open_worker
from scanlab.bench.store import TrialStore
from scanlab.cli.console import notes, out, print_json
from scanlab.cli.duration import spell_duration
from scanlab.cli.tune_options import SearchOptions, TuneOptions
from scanlab.cli.tuning_output import as_json as tuning_as_json
from scanlab.cli.tuning_output import (
    deploy_winners,
    end_command,
    progress,
    record_decisions,
    say_where,
    say_why,
    show,
    write_results,
)
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
) -> list[TuningResult]:
    """Tune the problems one after the other, and return the results of those before an interruption, and its own.

    Args:
        cases: Problems with their inputs.
        store: Where trials are recorded.
        worker: Started worker, for the first problem.
        search: Options of the search; the problems share the budget equally.
        options: Options of the command.
        spent_s: Time since the command was started, which is part of the budget.
    """
    budget_s = search.budget_s
    share_s = None if budget_s is None else max(budget_s - spent_s, MIN_SHARE * budget_s) / len(cases)
    sweep_s = SWEEP_S if share_s is None else LENGTHS_SHARE * share_s
    sweeps = sweep_s >= MIN_SWEEP_S
    search_s = None if share_s is None else share_s - (sweep_s if sweeps else 0.0)
    tuned: list[TuningResult] = []
    for case in cases:
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
                open_worker=open_worker if tuned else partial(open_worker, started=worker),
            )
        tuned.append(found)
        if not options.as_json:
            show(found)
        if found.interrupted:
            break
        if sweeps:
            _sweep(found, search.backends, store, sweep_s, options.seed)
    return tuned


def report_tunings(
    cases: Sequence[Case],
    tuned: Sequence[TuningResult],
    store: TrialStore,
    search: SearchOptions,
    options: TuneOptions,
) -> None:
    """Deploy the winners, write the report, and print the choices.

    Raises:
        typer.Exit: The tuning was interrupted, or no problem has a winner.
    """
    spent = f"{search.trials} configurations" if search.budget_s is None else spell_duration(search.budget_s)
    winners = [found.entry for found in tuned if found.entry is not None]
    deployment = deploy_winners(winners) if options.deploys else None
    labels = [case.label for case in cases]
    record_decisions(zip(labels, tuned, strict=False), deployment, spent, store.folder)
    written = write_results(store)
    if options.as_json:
        print_json([tuning_as_json(found, options.raw) for found in tuned])
    else:
        say_where(written, deployment)
        for found in tuned:
            if len(tuned) > 1:
                out.print(f"[bold]{found.problem.key}[/]")
            say_why(found.why, found.winner is not None)
    end_command(any(found.interrupted for found in tuned), any(found.winner for found in tuned))


def _sweep(found: TuningResult, backends: list[Backend], store: TrialStore, seconds: float, seed: int) -> None:
    """Time the best configuration of every backend over the size that the op sweeps, for the plot."""
    if found.comparison is None or found.winner is None or not found.problem.swept:
        return
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
