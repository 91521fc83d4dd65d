"""Find the command that was asked for, import that one alone, and turn errors into exit codes."""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import inspect
import io
import os
import re
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from scanlab import __version__
from scanlab.errors import ScanlabError, UnavailableError, did_you_mean
from scanlab.extras import MissingExtraError, require
from scanlab.tuning.fleet.storage_name import misplaced

if TYPE_CHECKING:
    from typer import BadParameter, Typer


class Command(NamedTuple):
    """A command: the function `function` of the module `scanlab.cli.<module>`, and its line in the overview."""

    module: str
    function: str
    summary: str


COMMANDS = {
    "tune": Command("tune", "tune", "search, verify, time, compare and deploy; Ctrl-C keeps results"),
    "best": Command("best", "best", "show what serves a problem, and why; --recheck measures it again"),
    "report": Command("report", "report", "write tables, figures and a page from recorded trials"),
    "profile": Command("profile", "profile", "list, show, remove, restore or compare deployed choices"),
    "verify": Command("verify", "verify", "check backends, or with --model whole models, against float64"),
    "bench": Command("bench", "bench", "time named backends and configurations side by side"),
    "list": Command("list", "list_backends", "show the backends, their tunables, and why one cannot run here"),
    "doctor": Command("doctor", "doctor", "examine the machine and the compiler, and name the cures"),
    "run": Command("run", "run", "run a script with mamba_ssm and causal_conv1d served by scanlab"),
    "export": Command("export", "export", "write Vision Mamba as files that run without scanlab"),
    "fleet": Command("fleet", "fleet", "show the results of all machines that share a storage"),
}
# Commands of earlier versions, and those that replace them.
RENAMED = {
    "check": "`scanlab best --recheck`",
    "validate": "`scanlab verify --model vim-tiny`",
    "classify": "the program examples/classify_an_image.py",
    "replay": "the program experiments/replay.py",
}
# Commands whose process runs a script of the user, which may have arguments and signal handlers of its own.
RUNS_SCRIPTS = ("run",)
# Of errors that have no type of their own: of torch, of threads, of C++, of the loader and of the system.
OUT_OF_MEMORY = re.compile(r"can't (allocate|start new thread)|cannot allocate|bad_alloc|failed to map", re.IGNORECASE)

USAGE = "usage: scanlab COMMAND [OPTIONS]; `scanlab COMMAND --help` has an example"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; `arguments` are those of the process by default.

    Exit codes: 0 done; 1 a check failed; 2 bad input; 3 it cannot run here; 130 interrupted.
    """
    _settle_streams()
    try:
        _main(sys.argv[1:] if arguments is None else arguments)
    except OSError as error:  # a full disk, or an output that nobody takes
        with suppress(AttributeError, OSError):  # it may be closed, or no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be written
        if isinstance(error, BrokenPipeError):  # a reader such as `head` has seen enough
            sys.exit(0)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
    except (ImportError, MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and OUT_OF_MEMORY.search(str(error)) is None:
            raise
        print(
            "error: the memory does not suffice: make the problem, the size or the batch smaller, or raise the limits"
            " (ulimit -v, ulimit -u).",
            file=sys.stderr,
        )
        sys.exit(3)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _settle_streams() -> None:
    """Let no letter fail that the terminal lacks, and no file of a command take the number of a closed stream."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _main(words: list[str]) -> None:
    name = words[0] if words else "--help"
    if name in ("-h", "--help", "help"):
        print(overview(), flush=True)
        sys.exit(0)
    if name in ("-V", "--version"):
        print(f"scanlab {__version__}", flush=True)
        sys.exit(0)
    own = words[: words.index("--")] if "--" in words else words  # what follows belongs to a script
    url = None if name in RUNS_SCRIPTS else misplaced(own)
    if url is not None:
        print(f"error: {url}: a storage of studies is named by --storage alone.", file=sys.stderr)
        sys.exit(2)
    if name not in COMMANDS:
        print(f"error: {unknown(name)}", file=sys.stderr)
        sys.exit(2)
    try:
        require("lab", "typer", "rich")
    except MissingExtraError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
    _run(name, words[1:])


def overview() -> str:
    """Return the list of commands, a line each."""
    lines = [f"  {name:<8} {command.summary}" for name, command in COMMANDS.items()]
    purpose = "scanlab makes state-space models fast: verify, measure, choose, serve."
    return "\n".join((purpose, "", USAGE, "", *lines))


def unknown(name: str) -> str:
    """Return the message on a command that does not exist."""
    if name in RENAMED:
        return f"`scanlab {name}` is now {RENAMED[name]}."
    return f"there is no command {name!r}: `scanlab --help` lists them.{did_you_mean(name, COMMANDS)}"


def nearest_choice(said: str) -> str:
    """Return which legal value was meant, where `said` is typer's sentence on a value that is none, or nothing."""
    found = re.search(r"'([^']*)' is not one of ('.*')", said)
    return did_you_mean(found[1], re.findall("'([^']*)'", found[2])) if found else ""


def nearest_option(error: BadParameter) -> str:
    """Return which option was meant, where `error` is about one that does not exist, or nothing."""
    option = getattr(error, "option_name", None)
    if option is None or error.ctx is None or not error.message.startswith("No such option"):
        return ""
    # Without their dashes, which all options share.
    return did_you_mean(option.lstrip("-"), (each.lstrip("-") for one in error.ctx.command.params for each in one.opts))


def load_command(name: str) -> Typer:
    """Return the command of this name, imported with all that it needs."""
    import typer  # not part of the core

    command = COMMANDS[name]
    app = typer.Typer(
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode=None,
    )
    module = importlib.import_module(f"scanlab.cli.{command.module}")
    function = getattr(module, command.function)
    # Without the mark, lines of an example would be joined and broken anew, and could not be pasted.
    text = inspect.cleandoc(function.__doc__).replace("\n\nExample:\n", "\n\n\b\nExample:\n")

    @functools.wraps(function)
    def spoken(*arguments: Any, **options: Any) -> None:
        try:
            function(*arguments, **options)
        except KeyboardInterrupt:  # which typer would end in silence
            print("interrupted", file=sys.stderr)
            raise typer.Exit(130) from None

    app.command(name, help=text, context_settings=getattr(module, "CONTEXT_SETTINGS", None))(spoken)
    return app


def _run(name: str, words: list[str]) -> None:
    import typer  # not part of the core
    from rich.markup import escape

    from scanlab.cli.console import Exit, notes

    if name not in RUNS_SCRIPTS:
        # `timeout`, `docker stop` and Slurm end a process like this: its workers and results matter as much.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Its public subclass names the error of an option or argument, which typer keeps to itself.
    usage_error = cast("type[typer.BadParameter]", typer.BadParameter.__base__)
    atexit.register(gc.freeze)  # a process that ends need not look for garbage in torch's modules, which takes a second
    begun = time.monotonic()  # importing the command is part of its budget
    try:
        sys.exit(load_command(name)(words, prog_name=f"scanlab {name}", standalone_mode=False, obj=begun))
    except usage_error as error:
        said = error.format_message().replace("Value error, ", "")
        said = said.partition(" (Possible options")[0].rstrip(".")  # they are far-fetched at times
        said += f".{nearest_choice(said)}{nearest_option(error)}"
        if name == "tune" and "--capture" in words and "--" not in words:
            said += " Arguments of the script come after --, as in --capture train.py -- --epochs 1."
        notes.print(f"[bold red]error:[/] {escape(said)} `scanlab {name} --help` has the options and an example.")
        sys.exit(Exit.BAD_INPUT)
    except ScanlabError as error:
        notes.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(Exit.CANNOT_RUN if isinstance(error, UnavailableError) else Exit.BAD_INPUT)
