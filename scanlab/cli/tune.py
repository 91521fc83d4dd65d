"""`scanlab tune`: search, verify, time, report, choose."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from scanlab import settings
from scanlab.bench.clock import MeasuringClock
from scanlab.bench.compare import sweep_lengths
from scanlab.bench.context import Candidate
from scanlab.bench.process_worker import ProcessWorker, open_worker
from scanlab.bench.store import TrialStore
from scanlab.cli.console import (
    AsJson,
    Exit,
    ImagePath,
    ObjectiveName,
    OpName,
    ProblemTexts,
    Raw,
    Seed,
    SuiteName,
    cases_of,
    notes,
    op_of,
    out,
    print_json,
    refuse_repeated,
)
from scanlab.cli.duration import parse_duration, spell_duration
from scanlab.cli.tuning_output import as_json as tuning_as_json
from scanlab.cli.tuning_output import (
    deploy_winners,
    progress,
    record_decisions,
    say_where,
    say_why,
    show,
    write_results,
)
from scanlab.contract import registry
from scanlab.contract.backend import Backend, at_most
from scanlab.errors import InputError
from scanlab.runtime.deployment import expect_deployable
from scanlab.runtime.profile import profile_path
from scanlab.suites import CAPTURED, Case, load_suite
from scanlab.tuning.build_times import BuildTimes
from scanlab.tuning.result import TuningResult
from scanlab.tuning.scheduler import Budget
from scanlab.tuning.selection import deployed_candidate, untuned_candidate
from scanlab.tuning.tune import tune as tune_problem
from scanlab_kernels.build import cache_folder

DEFAULT_BUDGET = "4m"
# Share of the budget for the time against the length, where that is long enough to start with.
LENGTHS_SHARE = 0.15
MIN_SWEEP_S = 4.0
# Starting the command is part of the budget, as long as this share is left for the tuning.
MIN_SHARE = 0.5
# The time against the length, after a search that was given a number of trials and no time.
SWEEP_S = 30.0
# A captured script prints to standard error, as notices do: standard output is for results.
STDERR = 2


def tune(
    context: typer.Context,
    script_arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGUMENTS]...", help="Of the script that --capture names.")
    ] = None,
    op: OpName = None,
    problem: ProblemTexts = None,
    suite: SuiteName = None,
    image: ImagePath = None,
    capture: Annotated[
        Path | None, typer.Option(metavar="SCRIPT", help="Run a script of yours and tune for the problems it has.")
    ] = None,
    backends: Annotated[str | None, typer.Option(help="Separated by spaces; all by default.")] = None,
    budget: Annotated[
        str | None, typer.Option(help=f"Time beyond builds and report, such as 90s or 3m; {DEFAULT_BUDGET} by default.")
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Search this many configurations, however long.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Largest number of threads.")] = None,
    max_error: Annotated[
        float,
        typer.Option(
            min=0.0, help="Choose among those at most this far from float64, as a share of the largest value."
        ),
    ] = math.inf,
    objective: ObjectiveName = "median",
    deploys: Annotated[
        bool, typer.Option("--deploy/--no-deploy", help="Deploy the winners, or leave the profile as it is.")
    ] = True,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Where the studies are: journal file, database URL, or grpc://HOST:PORT; by default a file in --out."
        ),
    ] = None,
    results: Annotated[Path, typer.Option("--out", help="The folder of the records and the report.")] = Path("runs"),
    seed: Seed = 0,
    as_json: AsJson = False,
    raw: Raw = False,
    model: Annotated[
        str | None,
        typer.Option(help="Tune a whole model, each op and all together: vim-tiny, mamba-130m ..., MODULE:FUNCTION."),
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Of --model: items at once.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Of --model: side of the image, or tokens.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of --model: float32 (default), bfloat16_products, bfloat16, or auto to choose.")
    ] = None,
    max_logit_error: Annotated[
        float | None, typer.Option(min=0.0, help="Of --model: allowed error of a logit, as a share of the largest.")
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Of --model: share of first classes that a dtype must keep, of digits for a Vim."
        ),
    ] = None,
) -> None:
    """Find the fastest correct implementation of each problem on this machine, report it, and deploy it.

    Every configuration is verified against float64 before it is timed. The untuned choice takes part, and is replaced
    only by one that is shown to be faster; the deployed choice takes part too. Ctrl-C stops cleanly and
    keeps the results; running the command again continues from there. Exits with 3 where too little could be measured,
    because the machine is too busy for example. `--objective p95` ranks by the 95th percentile, that is by tail
    latency, of the clean rounds.

    Example:
        scanlab tune --suite vim-tiny --budget 3m
        scanlab tune --capture train.py -- --epochs 1
        scanlab tune --model vim-tiny --dtype auto --budget 5m
    """
    if deploys:
        expect_deployable()
    if model is not None:
        others = (op, problem, suite, image, capture, script_arguments, backends, trials, threads, storage)
        if any(each is not None and each != [] for each in others) or max_error < math.inf:
            raise InputError(
                "--model takes --budget, --objective, --out, --seed, --no-deploy, --json, --raw and its own options."
            )
        from scanlab.cli.tune_model import run_tune_model

        model_s = parse_duration(DEFAULT_BUDGET if budget is None else budget)
        run_tune_model(
            workload=(model, batch, size),
            dtype="float32" if dtype is None else dtype,
            objective=objective,
            max_logit_error=max_logit_error,
            min_agreement=min_agreement,
            budget_s=model_s,
            results=results,
            seed=seed,
            deploys=deploys,
            as_json=as_json,
            raw=raw,
        )
        return
    if any(each is not None for each in (batch, size, dtype, max_logit_error, min_agreement)):
        raise InputError(
            "--batch, --size, --dtype, --max-logit-error and --min-agreement are of --model; a problem has its own"
            " sizes: --problem batch=1,dim=384,length=197."
        )
    asked_s = DEFAULT_BUDGET if budget is None and trials is None else budget
    budget_s = None if asked_s is None else parse_duration(asked_s)
    named = None if backends is None else _named(backends)
    asked = op_of(op, named or ())
    chosen = _limited(_installed(asked) if named is None else named, threads)
    if capture is None and script_arguments:
        raise InputError(f"{' '.join(script_arguments)}: arguments are those of a script; name it with --capture.")
    if capture is not None and (problem or suite or image):
        raise InputError("--capture has problems of its own: leave --problem, --suite and --image out.")
    if capture is not None and not capture.is_file():
        raise InputError(f"--capture {capture}: there is no such script.")
    with closing(ProcessWorker()) as worker:  # its process starts while the problems are made
        cases = () if capture is not None else cases_of(problem, suite, image, asked)
        record = TrialStore(results)
        record.prepare()
        spent_s = time.monotonic() - context.obj
        if capture is not None:
            cases = _captured(capture, script_arguments or [], results)
        tuned: list[TuningResult] = []
        share_s = None if budget_s is None else max(budget_s - spent_s, MIN_SHARE * budget_s) / len(cases)
        sweep_s = SWEEP_S if share_s is None else LENGTHS_SHARE * share_s
        for case in cases:
            if not as_json:
                out.print(f"[bold]{case.problem.key}[/]  ({case.label})")
            seconds = None if share_s is None else share_s - (sweep_s if sweep_s >= MIN_SWEEP_S else 0.0)
            with progress(as_json) as on_event:
                found = tune_problem(
                    case.problem,
                    case.inputs,
                    chosen,
                    Budget(seconds, trials),
                    record,
                    inputs_label=case.label,
                    storage=storage,
                    untuned=untuned_candidate(case.problem),
                    deployed=deployed_candidate(case.problem),
                    max_error=max_error,
                    objective=objective,
                    seed=seed,
                    on_event=on_event,
                    build_times=BuildTimes(cache_folder()),
                    open_worker=open_worker if tuned else partial(open_worker, started=worker),
                )
            tuned.append(found)
            if not as_json:
                show(found)
            if found.interrupted:
                break
            if sweep_s >= MIN_SWEEP_S:
                _sweep(found, chosen, record, sweep_s, seed)
    spent = f"{trials} configurations" if budget_s is None else spell_duration(budget_s)
    deployment = deploy_winners([found.entry for found in tuned if found.entry is not None]) if deploys else None
    labels = [case.label for case in cases]
    record_decisions(zip(labels, tuned, strict=False), deployment, spent, record.folder)
    written = write_results(record)
    if as_json:
        print_json([tuning_as_json(found, raw) for found in tuned])
    else:
        say_where(written, deployment)
        for found in tuned:
            if len(tuned) > 1:
                out.print(f"[bold]{found.problem.key}[/]")
            say_why(found.why, found.winner is not None)
    if any(found.interrupted for found in tuned):
        notes.print("interrupted: everything measured is kept; run the same command again to go on.")
        raise typer.Exit(Exit.INTERRUPTED)
    if not any(found.winner for found in tuned):
        raise typer.Exit(Exit.CANNOT_RUN)


def _captured(script: Path, arguments: list[str], folder: Path) -> tuple[Case, ...]:
    """Return the problems that `script` has when it is run with these arguments, in a process of its own."""
    file = folder / f"{CAPTURED}-{script.stem}.toml"
    file.unlink(missing_ok=True)
    command = (sys.executable, "-m", "scanlab", "run", "--record", str(file), str(script), *arguments)
    environment = dict(os.environ)
    if not profile_path().exists():  # a profile that this tuning has yet to write cannot serve the script
        environment.pop(settings.PROFILE.name, None)
    ended = subprocess.run(command, check=False, stdout=STDERR, env=environment).returncode
    if ended != 0:
        raise InputError(f"{script} ended with exit code {ended}: nothing was tuned. Repair it, or its arguments.")
    if not file.exists():
        raise InputError(f"{script} asked for no scan: let it import mamba_ssm or scanlab and run a model.")
    return load_suite(f"{file}:{CAPTURED}")


def _sweep(found: TuningResult, backends: list[Backend], record: TrialStore, seconds: float, seed: int) -> None:
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
            record,
            MeasuringClock(),
            seconds,
            seed,
            on_length=lambda length: status.update(f"time against {found.problem.swept}: {length}"),
        )


def _named(names: str) -> list[Backend]:
    """Return the backends with these names, each of which must be installed."""
    named = [registry.get(name) for name in names.replace(",", " ").split()]
    if not named:
        raise InputError(f"--backends {names!r} names no backend; `scanlab list` shows them. Leave it out for all.")
    refuse_repeated(each.name for each in named)
    return named


def _installed(op: str) -> list[Backend]:
    """Return every backend of `op` that loads; print why the others do not."""
    loaded, failures = registry.load_all(op)
    for failure in failures.values():
        notes.print(f"[yellow]note:[/] {escape(failure)}")
    return list(loaded)


def _limited(backends: list[Backend], threads: int | None) -> list[Backend]:
    return backends if threads is None else [at_most(backend, threads) for backend in backends]
