"""`scanlab tune`: the options, and the problems that they name."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from scanlab import settings
from scanlab.bench.process_worker import ProcessWorker
from scanlab.bench.store import TrialStore
from scanlab.cli.console import (
    AsJson,
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
    refuse_repeated,
)
from scanlab.cli.duration import parse_duration
from scanlab.cli.finished import FinishedTunings
from scanlab.cli.tune_options import SearchOptions, TuneOptions
from scanlab.cli.tune_problems import report_tunings, tune_cases
from scanlab.contract import registry
from scanlab.contract.backend import Backend, at_most
from scanlab.errors import InputError
from scanlab.runtime.deployment import expect_deployable
from scanlab.runtime.profile import profile_path
from scanlab.suites import CAPTURED, Case, load_suite
from scanlab.tuning.fleet.storage import open_storage

DEFAULT_BUDGET = "4m"
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
    options = TuneOptions(objective, results, seed, deploys, as_json, raw)
    if model is not None:
        others = (op, problem, suite, image, capture, script_arguments, backends, trials, threads, storage)
        if any(each is not None and each != [] for each in others) or max_error < math.inf:
            raise InputError(
                "--model takes --budget, --objective, --out, --seed, --no-deploy, --json, --raw and its own options."
            )
        from scanlab.cli.tune_model import run_tune_model

        budget_s = parse_duration(DEFAULT_BUDGET if budget is None else budget)
        allowed = (max_logit_error, min_agreement)
        run_tune_model((model, batch, size), "float32" if dtype is None else dtype, allowed, budget_s, options)
        return
    if any(each is not None for each in (batch, size, dtype, max_logit_error, min_agreement)):
        raise InputError(
            "--batch, --size, --dtype, --max-logit-error and --min-agreement are of --model; a problem has its own"
            " sizes: --problem batch=1,dim=384,length=197."
        )
    asked_s = DEFAULT_BUDGET if budget is None and trials is None else budget
    named = None if backends is None else _named(backends)
    asked = op_of(op, named or ())
    chosen = _limited(_installed(asked) if named is None else named, threads)
    search = SearchOptions(chosen, None if asked_s is None else parse_duration(asked_s), trials, storage, max_error)
    if capture is None and script_arguments:
        raise InputError(f"{' '.join(script_arguments)}: arguments are those of a script; name it with --capture.")
    if capture is not None and (problem or suite or image):
        raise InputError("--capture has problems of its own: leave --problem, --suite and --image out.")
    if capture is not None and not capture.is_file():
        raise InputError(f"--capture {capture}: there is no such script.")
    store, interrupted = TrialStore(results), False
    finished = FinishedTunings(store, deploys, search.budget)
    try:
        with closing(ProcessWorker()) as worker:  # its process starts while the problems are made
            cases = () if capture is not None else cases_of(problem, suite, image, asked)
            store.prepare()
            _expect_storage(storage, results)
            spent_s = time.monotonic() - context.obj
            if capture is not None:
                cases = _captured(capture, script_arguments or [], results)
            tune_cases(cases, store, worker, search, options, spent_s, finished)
    except KeyboardInterrupt:
        interrupted = True
    report_tunings(finished, options, interrupted)


def _expect_storage(storage: str | None, results: Path) -> None:
    """Open the storage that is named, before anything is tuned, and print its repairs."""
    if storage is not None:
        _, notices = open_storage(storage, results)
        for notice in notices:
            notes.print(f"[yellow]note:[/] {escape(notice)}")


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
