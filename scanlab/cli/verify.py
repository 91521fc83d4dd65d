"""`scanlab verify`: compare backends and configurations with the float64 reference."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from scanlab.bench.context import BenchmarkContext, Candidate
from scanlab.bench.process_worker import open_worker
from scanlab.bench.records import label_of
from scanlab.bench.worker import Evaluation, Worker
from scanlab.cli.console import (
    AsJson,
    Exit,
    ImagePath,
    OpName,
    ProblemTexts,
    Seed,
    SuiteName,
    cases_of,
    notes,
    op_of,
    out,
    plain_table,
    print_json,
    refuse_repeated,
)
from scanlab.cli.verify_model import verify_model
from scanlab.contract import registry
from scanlab.contract.backend import Backend
from scanlab.contract.base import Problem
from scanlab.contract.op import Op, map_tensors, with_gaps
from scanlab.contract.space import Config, Value, config_key
from scanlab.errors import InputError
from scanlab.suites import Case, drawn_case

MAX_CONFIGURATIONS = 1000
IMAGE_SIZE = 224
# Ends the label of inputs whose every element has a gap after it.
STRIDED = "strided"


@dataclass(frozen=True)
class Verification:
    """One configuration of one backend held against the reference on one problem."""

    backend: str
    config: Config
    problem: Problem
    inputs: str
    state: str
    worst: float | None = None
    tensor: str | None = None
    allowed: float | None = None
    reason: str | None = None

    @property
    def asked(self) -> str:
        """The problem, and that its inputs are strided where they are."""
        return f"{self.problem.key} {STRIDED}" if self.inputs.endswith(STRIDED) else self.problem.key

    def to_json(self) -> dict[str, Any]:
        """Return this verification as JSON values."""
        return self.__dict__ | {"problem": self.problem.key, "config": dict(self.config)}


def verify(
    selections: Annotated[
        list[str] | None, typer.Argument(metavar="[BACKEND[:TUNABLE=VALUE,...]]...", help="Only these; all by default.")
    ] = None,
    op: OpName = None,
    problem: ProblemTexts = None,
    suite: SuiteName = None,
    image: ImagePath = None,
    model: Annotated[
        str | None,
        typer.Option(help="Check whole models instead: digits, vim-tiny, vim-small, vim-base or a stride8 variant."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help=f"With --model: pixels along one side of the image; {IMAGE_SIZE}.")
    ] = None,
    dtypes: Annotated[str | None, typer.Option(help="With --model: dtypes of the digits model; all of them.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Compare every backend and configuration with the float64 reference: outputs and gradients.

    Without a problem or a suite: two hard problems for every configuration, and for the defaults the corners of the
    contract and inputs with gaps. Cheap calls are repeated, and each must be right. Of more than a thousand
    configurations each tunable is tried in turn. A problem that a backend rejects is listed with its reason and is no
    failure. Exits with 1 where one is wrong or crashes, and with 3 where nothing could run. Ctrl-C shows the results
    until then.

    Example:
        scanlab verify chunked native:threads=1
    """
    refuse_repeated(selections or [])
    if model is not None:
        if problem is not None or suite is not None:
            raise InputError("--model checks a whole model: leave --problem and --suite out.")
        verify_model(model, selections, image, size or IMAGE_SIZE, dtypes, as_json)
        return
    if size is not None or dtypes is not None:
        raise InputError("--size and --dtypes are of --model; a problem has its own: --problem batch=1,dim=8,length=8.")
    plan = list(_plan(selections or [], op, problem, suite, image, seed))
    results: list[Verification] = []
    stopped = False
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    verifier = Verifier(seed)
    with Progress(*columns, console=notes, transient=True, disable=as_json) as progress:
        task = progress.add_task("verify", total=len(plan))
        for backend, config, case in plan:
            progress.update(task, description=f"{backend.name} {config_key(config)}")
            try:
                results.append(verifier.verify(backend, config, case))
            except KeyboardInterrupt:
                notes.print(f"interrupted at {label_of(backend.name, config)} on {case.problem.key}")
                stopped = True
                break
            progress.advance(task)
    verifier.close()
    if as_json:
        print_json([result.to_json() for result in results])
    else:
        _show(results)
    if stopped:
        raise typer.Exit(Exit.INTERRUPTED)
    if any(result.state in ("wrong", "crashed") for result in results):
        raise typer.Exit(Exit.CHECK_FAILED)
    if all(result.state == "rejected" for result in results):
        raise typer.Exit(Exit.CANNOT_RUN)


def _plan(
    selections: list[str], op_name: str | None, problem: Sequence[str] | None, suite: str | None, image: Any, seed: int
) -> Iterator[tuple[Backend, Config, Case]]:
    """Yield the backends, configurations and cases to verify; a selection with settings names one configuration."""
    asked = bool(problem) or suite is not None
    chosen = [registry.parse_selection(text) for text in selections]
    if not chosen:
        only = op_of(op_name) if asked or op_name is not None else None
        chosen = [(each, {}) for each in registry.load_all(only)[0]]
    given: tuple[Case, ...] = ()
    if asked:
        given = cases_of(problem, suite, image, op_of(op_name, (backend for backend, _ in chosen)))
    for backend, config in chosen:
        yield from ((backend, *each) for each in planned(backend, config, given, seed))


def planned(
    backend: Backend, config: Config, given: Sequence[Case] = (), seed: int = 0
) -> Iterator[tuple[Config, Case]]:
    """Yield the configurations of a backend, or `config` alone, and the cases that each is verified on.

    Those are `given`, or else the probes for every configuration and the corners and strided inputs for `config`.
    """
    op = registry.op(backend.op)
    cases = given or _drawn(op.probes, seed)
    for case in cases:
        refused = backend.unavailable() or backend.rejects(case.problem)
        configs = [config] if config or refused else _configs(backend, case.problem)
        for each in configs:
            yield each, case
            if not given and not refused and case is cases[0]:
                yield from ((each, wider) for wider in _drawn(op.corners_of(each), seed))
    if not given:
        yield from ((config, corner) for corner in (*_drawn(op.corners, seed), *_strided(op, seed)))


def _drawn(problems: Iterable[Problem], seed: int) -> tuple[Case, ...]:
    return tuple(drawn_case(each, seed) for each in problems)


def _strided(op: Op, seed: int) -> Iterator[Case]:
    """Yield the first corner, with gradients too, on inputs whose every element has a gap after it."""
    for gradients in (False, True):
        case = drawn_case(op.corners[0].replace(gradients=gradients), seed)
        inputs = tuple(map_tensors(with_gaps, each) for each in case.inputs)
        yield replace(case, inputs=inputs, label=f"{case.label}, {STRIDED}")


def _configs(backend: Backend, problem: Problem) -> list[dict[str, Value]]:
    """Return every configuration; in a large space, those that differ from the defaults in one tunable."""
    every = list(itertools.islice(backend.space.configs(problem), MAX_CONFIGURATIONS + 1))
    return every if len(every) <= MAX_CONFIGURATIONS else list(backend.space.one_at_a_time(problem))


class Verifier:
    """Worker that is given the context of each problem, computed once."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._contexts: dict[tuple[Problem, str], BenchmarkContext] = {}
        self._loaded: BenchmarkContext | None = None
        self._worker: Worker | None = None

    def verify(self, backend: Backend, config: Config, case: Case) -> Verification:
        """Compare one configuration with the reference on one problem."""
        refused = backend.unavailable() or backend.rejects(case.problem)
        if refused:
            return Verification(backend.name, config, case.problem, case.label, "rejected", reason=refused)
        candidate = Candidate.of(backend, config, case.problem)
        result = self._evaluate(candidate, case)
        found = Verification(
            backend.name, candidate.config, case.problem, case.label, result.state, reason=result.reason
        )
        if result.verdict is None:
            return found
        errors, tolerances = result.verdict.errors, result.verdict.tolerances
        tensor = max(errors, key=lambda name: errors[name] / tolerances[name])
        return replace(found, worst=errors[tensor], tensor=tensor, allowed=tolerances[tensor])

    def _evaluate(self, candidate: Candidate, case: Case) -> Evaluation:
        key = case.problem, case.label
        if key not in self._contexts:
            self._contexts[key] = BenchmarkContext.of(case.problem, case.inputs, case.label, self._seed)
        context = self._contexts[key]
        if self._worker is None:
            self._worker, _ = open_worker(context, [candidate.backend])
        elif context is not self._loaded:
            self._worker.load(context)
        self._loaded = context
        return self._worker.verify(candidate)

    def close(self) -> None:
        """End the process of the worker."""
        if self._worker is not None:
            self._worker.close()


def _show(results: list[Verification]) -> None:
    table = plain_table("backend", "configuration", "problem", "verdict", "largest error", "allowed", "of")
    for result in results:
        settings = " ".join(f"{name}={value}" for name, value in result.config.items())
        if result.worst is not None:
            mark = "[green]ok[/]" if result.state == "ok" else f"[bold red]{result.state}[/]"
            errors = (f"{result.worst:.1e}", f"{result.allowed:.0e}", result.tensor)
            table.add_row(result.backend, settings, result.asked, mark, *errors)
        elif result.state != "rejected":
            table.add_row(result.backend, settings, result.asked, f"[bold red]{result.state}[/]", "see below")
    if table.row_count:
        out.print(table)
    rejected: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if result.state == "rejected":
            rejected.setdefault((result.backend, result.reason or ""), []).append(result.asked)
    for (backend, reason), problems in rejected.items():
        distinct = list(dict.fromkeys(problems))
        what = distinct[0] if len(distinct) == 1 else f"{len(distinct)} problems"
        out.print(f"[dim]{backend} rejected {what}:[/] {escape(reason)}")
    for result in results:
        if result.state in ("wrong", "crashed"):
            label = escape(label_of(result.backend, result.config))
            out.print(f"[bold red]{label}[/] on {result.asked}: {escape(result.reason or '')}")
    counts = {
        state: sum(result.state == state for result in results) for state in ("ok", "rejected", "wrong", "crashed")
    }
    out.print(", ".join(f"{count} {state}" for state, count in counts.items()))
