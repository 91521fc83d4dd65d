"""`scanlab verify`: every backend and configuration against the float64 oracle."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from scanlab.bench.prove import Failure, Setting, prove
from scanlab.bench.records import label_of
from scanlab.cli.console import AsJson, Exit, ImagePath, ProblemText, SuiteName, cases_of, notes, out, print_json
from scanlab.cli.verify_model import verify_model
from scanlab.contract import registry
from scanlab.contract.backend import Backend
from scanlab.contract.problem import Problem, ScanProblem
from scanlab.contract.space import Config, Value, config_key
from scanlab.errors import InputError
from scanlab.suites import Case, drawn_case

MOST_CONFIGURATIONS = 1000


@dataclass(frozen=True)
class Proof:
    """One configuration of one backend held against the oracle on one problem."""

    backend: str
    config: Config
    problem: ScanProblem
    inputs: str
    state: str
    worst: float | None = None
    tensor: str | None = None
    allowed: float | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """This proof as JSON values."""
        return self.__dict__ | {"problem": self.problem.key, "config": dict(self.config)}


def verify(
    selections: Annotated[
        list[str] | None, typer.Argument(metavar="[BACKEND[:TUNABLE=VALUE,...]]...", help="Only these; all by default.")
    ] = None,
    problem: ProblemText = None,
    suite: SuiteName = None,
    image: ImagePath = None,
    model: Annotated[
        str | None,
        typer.Option(help="Check whole models instead: digits, vim-tiny, vim-small, vim-base or a stride8 variant."),
    ] = None,
    size: Annotated[int, typer.Option(help="With --model: pixels along one side of the image.")] = 224,
    dtypes: Annotated[str | None, typer.Option(help="With --model: dtypes of the digits model; all of them.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the inputs that are drawn.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Hold every backend and configuration against the float64 oracle: outputs, last state, gradients.

    Without a problem or a suite: two hard problems for every configuration, and the corners of the contract for
    the defaults. Of more than a thousand configurations each tunable is tried in turn. A problem that a backend
    rejects is listed with its reason and is no failure. Exits with 1 where a scan is wrong or crashes.
    Ctrl-C shows what was held against the oracle until then. Example: `scanlab verify chunked native:threads=1`
    """
    if model is not None:
        if problem is not None or suite is not None:
            raise InputError("--model checks a whole model: leave --problem and --suite out.")
        verify_model(model, selections, image, size, dtypes, as_json)
        return
    plan = list(_plan(selections or [], problem, suite, image, seed))
    proofs: list[Proof] = []
    stopped = False
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    settings: dict[ScanProblem, Setting] = {}
    with Progress(*columns, console=notes, transient=True, disable=as_json) as progress:
        task = progress.add_task("verify", total=len(plan))
        for backend, config, case in plan:
            progress.update(task, description=f"{backend.name} {config_key(config)}")
            try:
                proofs.append(_prove(backend, config, case, seed, settings))
            except KeyboardInterrupt:
                notes.print(f"interrupted at {label_of(backend.name, config)} on {case.problem.key}")
                stopped = True
                break
            progress.advance(task)
    if as_json:
        print_json([proof.to_json() for proof in proofs])
    else:
        _show(proofs)
    if stopped:
        raise typer.Exit(Exit.INTERRUPTED)
    if any(proof.state in ("wrong", "crashed") for proof in proofs):
        raise typer.Exit(Exit.CHECK_FAILED)


def _plan(
    selections: list[str], problem: str | None, suite: str | None, image: Any, seed: int
) -> Iterator[tuple[Backend, Config, Case]]:
    """What is held against what; a selection with settings stands for that configuration alone."""
    chosen = [registry.parse_selection(text) for text in selections] or [(each, {}) for each in registry.load_all()[0]]
    asked = problem is not None or suite is not None
    for backend, config in chosen:
        op = registry.op(backend.op)
        cases = cases_of(problem, suite, image) if asked else _drawn(op.probes, seed)
        corners = () if asked else _drawn(op.corners, seed)
        for case in cases:
            refused = backend.unavailable() or backend.rejects(case.problem)
            configs = [config] if config or refused else _configs(backend, case.problem)
            for each in configs:
                yield backend, each, case
                if not asked and not refused and case is cases[0]:
                    yield from ((backend, each, wider) for wider in _drawn(op.corners_of(each), seed))
        for case in corners:
            yield backend, config, case


def _drawn(problems: Iterable[Problem], seed: int) -> tuple[Case, ...]:
    return tuple(drawn_case(each, seed) for each in problems if isinstance(each, ScanProblem))


def _configs(backend: Backend, problem: ScanProblem) -> list[dict[str, Value]]:
    """Every configuration; of a space too large for that, each tunable in turn at each of its values."""
    every = list(itertools.islice(backend.space.configs(problem), MOST_CONFIGURATIONS + 1))
    return every if len(every) <= MOST_CONFIGURATIONS else list(backend.space.in_turn(problem))


def _prove(backend: Backend, config: Config, case: Case, seed: int, settings: dict[ScanProblem, Setting]) -> Proof:
    refused = backend.unavailable() or backend.rejects(case.problem)
    if refused:
        return Proof(backend.name, config, case.problem, case.label, "rejected", reason=refused)
    if case.problem not in settings:
        settings[case.problem] = Setting.of(case.problem, case.inputs, case.label, seed)
    full = backend.space.complete(config, case.problem, backend.name)
    result = prove(backend, full, settings[case.problem])
    state, reason = (result.state, result.reason) if isinstance(result, Failure) else ("ok", None)
    if result.verdict is None:
        return Proof(backend.name, full, case.problem, case.label, state, reason=reason)
    errors, tolerances = result.verdict.errors, result.verdict.tolerances
    tensor = max(errors, key=lambda name: errors[name] / tolerances[name])
    return Proof(
        backend.name, full, case.problem, case.label, state, errors[tensor], tensor, tolerances[tensor], reason
    )


def _show(proofs: list[Proof]) -> None:
    table = Table("backend", "configuration", box=None, pad_edge=False)
    table.add_column("problem", overflow="fold")
    for header in ("verdict", "largest error", "allowed", "of"):
        table.add_column(header)
    marks = {"ok": "[green]ok[/]", "rejected": "[dim]rejected[/]"}
    for proof in proofs:
        mark = marks.get(proof.state, f"[bold red]{proof.state}[/]")
        settings = " ".join(f"{name}={value}" for name, value in proof.config.items())
        if proof.worst is None:
            why = proof.reason if proof.state == "rejected" else "see below"
            table.add_row(proof.backend, settings, proof.problem.key, mark, escape(why or ""))
        else:
            errors = (f"{proof.worst:.1e}", f"{proof.allowed:.0e}", proof.tensor)
            table.add_row(proof.backend, settings, proof.problem.key, mark, *errors)
    out.print(table)
    for proof in proofs:
        if proof.state in ("wrong", "crashed"):
            label = escape(label_of(proof.backend, proof.config))
            out.print(f"[bold red]{label}[/] on {proof.problem.key}: {escape(proof.reason or '')}")
    counts = {state: sum(proof.state == state for proof in proofs) for state in ("ok", "rejected", "wrong", "crashed")}
    out.print(", ".join(f"{count} {state}" for state, count in counts.items()))
