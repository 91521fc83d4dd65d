"""`scanlab list`: show the ops and backends, the support of each, and why one cannot run here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby
from typing import Annotated, Any

import typer
from rich.markup import escape

from scanlab.cli.console import AsJson, out, plain_table, print_json
from scanlab.contract import registry
from scanlab.contract.backend import Backend
from scanlab.errors import UnknownBackendError, did_you_mean


def list_backends(
    name: Annotated[
        str | None, typer.Argument(metavar="[BACKEND or OP]", help="One backend with all there is to know, or one op.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the ops and their backends; of one backend its capabilities and tunables, or why it cannot run here.

    Example:
        scanlab list chunked
    """
    if name is not None and name not in registry.ops():
        if name not in registry.names() and (near := did_you_mean(name, (*registry.names(), *registry.ops()))):
            raise UnknownBackendError(f"no backend or op is called {name!r}.{near}")
        chosen = registry.get(name)
        print_json(_facts(chosen)) if as_json else _show_one(chosen)
        return
    loaded, failures = registry.load_all(name)
    if as_json:
        print_json({"backends": [_facts(each) for each in loaded], "failures": failures})
        return
    for op, backends in groupby(loaded, key=lambda backend: backend.op):
        out.print(f"[bold]{op}[/]: {escape(registry.op(op).summary)}")
        _show_all(backends)
        out.print()
    for failure in failures.values():
        out.print(f"[red]{escape(failure)}[/]")
    out.print("`scanlab list BACKEND` shows its capabilities and tunables.")


def _show_all(backends: Iterable[Backend]) -> None:
    table = plain_table("", "backend", "method")
    for each in backends:
        reason = each.unavailable()
        summary = each.summary if reason is None else f"{each.summary}; cannot run here: {reason}"
        table.add_row("[green]ok[/]" if reason is None else "[red]--[/]", f"[bold]{each.name}[/]", escape(summary))
    out.print(table)


def _facts(backend: Backend) -> dict[str, Any]:
    return {
        "name": backend.name,
        "op": backend.op,
        "summary": backend.summary,
        "rank": backend.rank,
        "unavailable": backend.unavailable(),
        "capabilities": asdict(backend.capabilities),
        "tunables": [asdict(choice) for choice in backend.space.tunables],
        "source_hash": backend.source_hash,
    }


def _show_one(backend: Backend) -> None:
    reason = backend.unavailable()
    out.print(f"[bold]{backend.name}[/]: {escape(backend.summary)}")
    out.print("runs here" if reason is None else f"[red]cannot run here:[/] {escape(reason)}")
    abilities = plain_table("can", "")
    for name, value in asdict(backend.capabilities).items():
        shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
        abilities.add_row(name, " ".join(shown) if isinstance(shown, tuple) else str(shown))
    out.print(abilities)
    tunables = plain_table("tunable", "default", "values", "meaning")
    for choice in backend.space.tunables:
        tunables.add_row(choice.name, str(choice.default), " ".join(map(str, choice.values)), escape(choice.summary))
    out.print(tunables)
    out.print("sources: " + ", ".join(path.name for path in backend.sources) + f"  (hash {backend.source_hash})")
