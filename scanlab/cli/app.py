"""The commands, each in the module of its purpose, and how an error leaves the program."""

from __future__ import annotations

import sys

import typer
from rich.markup import escape

from scanlab.cli import bench, check, classify, export, fleet, inspect, prove, recorded, replay, run, tune, validate
from scanlab.cli.console import Exit, notes
from scanlab.errors import ScanlabError, UnavailableError

app = typer.Typer(
    name="scanlab",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    help="Makes the Mamba selective scan fast on this machine, proves that it is right, and puts the winner to work.",
)
app.command("tune")(tune.tune)
app.command("run", context_settings=run.PASSES_ON)(run.run)
app.command("list")(inspect.list_backends)
app.command("doctor")(inspect.doctor)
app.command("report")(recorded.report)
app.command("best")(recorded.best)
app.command("check")(check.check)
app.command("fleet")(fleet.fleet)
app.command("replay")(replay.replay)
app.command("verify")(prove.verify)
app.command("bench")(bench.bench)
app.command("classify")(classify.classify)
app.command("validate")(validate.validate)
app.command("export")(export.export)


def main() -> None:
    """Run the command line; an error that scanlab raises on purpose is printed without a traceback."""
    try:
        app()
    except ScanlabError as error:
        notes.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(Exit.CANNOT_RUN if isinstance(error, UnavailableError) else Exit.BAD_INPUT)
    except KeyboardInterrupt:
        notes.print("interrupted")
        sys.exit(Exit.INTERRUPTED)
