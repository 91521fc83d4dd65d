"""`scanlab list`: show the backends, what each supports, and why one cannot run here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from scanlab.cli.console import AsJson, out, print_json
from scanlab.contract import registry
from scanlab.contract.backend import Backend


def list_backends(
    backend: Annotated[str | None, typer.Argument(help="One backend, with all there is to know of it.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the backends, their capabilities, tunables and defaults; those that cannot run here, with reason and cure.

    Example: `scanlab list chunked`
    """
    if backend is not None:
        chosen = registry.get(backend)
        print_json(_facts(chosen)) if as_json else _show_one(chosen)
        return
    loaded, failures = registry.load_all()
    if as_json:
        print_json({"backends": [_facts(each) for each in loaded], "failures": failures})
        return
    table = Table("backend", "runs here", "what it does", "dtypes", "tunables (default)", box=None, pad_edge=False)
    for each in loaded:
        reason = each.unavailable()
        tunables = ", ".join(f"{choice.name}={choice.default}" for choice in each.space.tunables)
        dtypes = " ".join(each.capabilities.dtypes)
        table.add_row(
            f"[bold]{each.name}[/]", "[green]yes[/]" if reason is None else "[red]no[/]", each.summary, dtypes, tunables
        )
    out.print(table)
    for each in loaded:
        reason = each.unavailable()
        if reason is not None:
            out.print(f"\n[bold]{each.name}[/] cannot run here: {escape(reason)}")
    for failure in failures.values():
        out.print(f"\n[red]{escape(failure)}[/]")


def _facts(backend: Backend) -> dict[str, Any]:
    return {
        "name": backend.name,
        "summary": backend.summary,
        "rank": backend.rank,
        "unavailable": backend.unavailable(),
        "capabilities": asdict(backend.capabilities),
        "tunables": [asdict(choice) for choice in backend.space.tunables],
        "source_hash": backend.source_hash,
    }


def _show_one(backend: Backend) -> None:
    reason = backend.unavailable()
    out.print(f"[bold]{backend.name}[/]: {backend.summary}")
    out.print("runs here" if reason is None else f"[red]cannot run here:[/] {escape(reason)}")
    can = asdict(backend.capabilities)
    abilities = Table("can", "", box=None, pad_edge=False)
    for name, value in can.items():
        shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
        abilities.add_row(name, " ".join(shown) if isinstance(shown, tuple) else str(shown))
    out.print(abilities)
    tunables = Table("tunable", "default", "values", "meaning", box=None, pad_edge=False)
    for choice in backend.space.tunables:
        tunables.add_row(choice.name, str(choice.default), " ".join(map(str, choice.values)), choice.summary)
    out.print(tunables)
    out.print("sources: " + ", ".join(path.name for path in backend.sources) + f"  (hash {backend.source_hash})")
