"""MkDocs hook: write the page of commands from the command line itself."""

from __future__ import annotations

import inspect
from typing import Any

import typer

from scanlab.cli.app import COMMANDS, load_command


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the commands into the page that asks for them."""
    return markdown.replace("{{ commands }}", commands()) if "{{ commands }}" in markdown else markdown


def commands() -> str:
    """Return the help of every command as Markdown."""
    return "\n\n".join(_command(name) for name in COMMANDS)


def _command(name: str) -> str:
    command = typer.main.get_command(load_command(name))
    rows = ["| option | meaning |", "|---|---|"]
    for option in command.params:
        if option.name != "help":
            argument = option.param_type_name == "argument"
            names = (option.metavar or f"[{option.name.upper()}]") if argument else ", ".join(option.opts)
            rows.append(f"| `{names}` | {(getattr(option, 'help', None) or '').replace('|', '/')} |")
    text, _, example = (command.help or "").partition("\n\n\b\nExample:\n")
    sample = f"```sh\n{inspect.cleandoc(example)}\n```"
    return "\n\n".join((f"## scanlab {name}", text, sample, "\n".join(rows)))
