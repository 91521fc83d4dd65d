"""Consoles, exit codes and options that all commands share."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scanlab.bench.objective import Objective
from scanlab.contract import registry
from scanlab.contract.backend import Backend
from scanlab.contract.base import Problem
from scanlab.errors import InputError
from scanlab.suites import Case, drawn_case, load_suite, suite_problems

# Results go to standard output, for people and for pipes; progress, notices and errors to standard error.
# A pipe has no width, and standard output may be closed; wide enough for the tables.
WIDTH = None if (sys.stdout is not None and sys.stdout.isatty()) or os.environ.get("COLUMNS") else 140


class QuietConsole(Console):
    """A console that falls silent where its reader is gone, so that what was measured is still kept and deployed."""

    def on_broken_pipe(self) -> None:
        """Send what is left to print nowhere."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


out = QuietConsole(highlight=False, soft_wrap=True, width=WIDTH)
notes = QuietConsole(stderr=True, highlight=False, soft_wrap=True)


def plain_table(*columns: str, header: bool = True) -> Table:
    """Return a table without lines, whose cells are folded and never cut where the terminal is narrow."""
    table = Table(box=None, pad_edge=False, show_header=header)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


@contextmanager
def steps(command: str) -> Iterator[Callable[[str], None]]:
    """Show the step under way: in place on a terminal, and else in a line of its own; yields the function to call."""
    if notes.is_terminal:
        with notes.status("") as status:
            yield lambda step: status.update(escape(f"{command}: {step}"))
    else:
        yield lambda step: notes.print(f"[dim]{escape(f'{command}: {step}')}[/]")


class Exit(IntEnum):
    """The exit codes of every command."""

    DONE = 0
    CHECK_FAILED = 1
    BAD_INPUT = 2
    CANNOT_RUN = 3
    INTERRUPTED = 130


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read, and nothing else.")]
Raw = Annotated[bool, typer.Option("--raw", help="With --json: every sample too.")]
ProblemTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--problem",
        metavar="NAME=VALUE,...",
        help="Such as batch=1,dim=384,length=197; may be repeated.",
    ),
]
OpName = Annotated[
    str | None,
    typer.Option("--op", metavar="NAME", help="The op of --problem; that of the named backends, or the scan."),
]
SuiteName = Annotated[
    str | None,
    typer.Option("--suite", metavar="NAME", help="A suite of problems: vim-tiny, mamba-130m ..., or FILE.toml:NAME."),
]
ImagePath = Annotated[
    Path | None,
    typer.Option("--image", help="The photograph that a model's suite is captured on; one that scikit-learn ships."),
]
MAX_SEED = 2**32 - 1  # the largest that NumPy takes, with which the search draws
Seed = Annotated[
    int, typer.Option(min=0, max=MAX_SEED, help="Of the drawn inputs, and of the search and the order of samples.")
]
ObjectiveName = Annotated[
    Objective, typer.Option("--objective", help="The time that candidates are ranked by: the median, or the tail.")
]
DEFAULT_SUITE = "vim-tiny"


def refuse_repeated(names: Iterable[str]) -> None:
    """Raise InputError where one of `names` is given twice."""
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"{name!r} is given {count} times: name it once.")


def print_json(value: Any) -> None:
    """Print `value` as JSON on standard output."""
    out.out(json.dumps(value, indent=2), highlight=False)


def op_of(named: str | None, backends: Iterable[Backend] = ()) -> str:
    """Return the op that a command is about: that of `--op`, or that of the backends it names, or the default.

    Raises:
        InputError: The backends implement other ops than `named`, or several.
        UnknownBackendError: No such op is installed.
    """
    ops = {backend.name: backend.op for backend in backends}
    op = named or next(iter(ops.values()), registry.DEFAULT_OP)
    for name, own in ops.items():
        if own != op:
            raise InputError(f"backend {name!r} implements {own}, not {op}: name backends of one op.")
    return registry.op(op).name


def cases_of(
    problems: Sequence[str] | None, suite: str | None, image: Path | None = None, op: str = registry.DEFAULT_OP
) -> tuple[Case, ...]:
    """Return the problems that `--problem`s, `--suite` and `--image` name, with inputs; by default those of vim-tiny.

    Arguments and errors are those of `problems_of`; a problem that does not fit into memory is refused too.
    """
    if problems:
        return tuple(map(drawn_case, _parsed(problems, suite, image, op)))
    name = _suite_name(suite, op)
    cases = load_suite(name, image)
    _expect_op(name, (case.problem for case in cases), op)
    return cases


def problems_of(
    problems: Sequence[str] | None, suite: str | None, image: Path | None = None, op: str = registry.DEFAULT_OP
) -> tuple[Problem, ...]:
    """Return the problems that `--problem`s, `--suite` and `--image` name; by default those of the vim-tiny suite.

    Args:
        problems: Texts of `--problem`.
        suite: Name of a suite.
        image: The photograph that a model's suite is captured on.
        op: The op of the problems.

    Raises:
        InputError: A problem is given together with a suite or an image, or there is none of another op than the scan.
    """
    if problems:
        return _parsed(problems, suite, image, op)
    name = _suite_name(suite, op)
    found = suite_problems(name, image)
    _expect_op(name, found, op)
    return found


def _parsed(problems: Sequence[str], suite: str | None, image: Path | None, op: str) -> tuple[Problem, ...]:
    if suite is not None or image is not None:
        raise InputError("--problem draws its own inputs: leave --suite and --image out, or leave --problem out.")
    asked = tuple(registry.parse_problem(text, op) for text in problems)
    refuse_repeated(each.key for each in asked)
    return asked


def _suite_name(suite: str | None, op: str) -> str:
    if suite is None and op != registry.DEFAULT_OP:
        raise InputError(f"no problem of {op} is named: add one, such as --problem {registry.op(op).corners[0].key}.")
    return DEFAULT_SUITE if suite is None else suite


def _expect_op(suite: str, problems: Iterable[Problem], op: str) -> None:
    others = {problem.op for problem in problems} - {op}
    if others:
        raise InputError(f"suite {suite!r} is about {', '.join(others)}: name backends of that op, or leave --op out.")
