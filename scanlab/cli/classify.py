"""`scanlab classify`: what is in pictures, by Vision Mamba."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import track

from scanlab.cli.console import AsJson, Exit, notes, out, print_json
from scanlab.models.checkpoints import open_model
from scanlab.models.classify import Classified, find_pictures
from scanlab.models.classify import classify as classify_pictures


def classify(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures, and folders of pictures.")],
    weights: Annotated[
        str, typer.Option(help="A .pth or .safetensors file, or a published name such as vim_t_midclstok_76p1acc.")
    ],
    size: Annotated[int, typer.Option(help="Pixels along one side of what the model sees.")] = 224,
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 5,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 8,
    backend: Annotated[str | None, typer.Option(help="The scan's backend; this machine's choice.")] = None,
    as_json: AsJson = False,
) -> None:
    """The most probable classes of each picture; one that cannot be read is reported and stops no other.

    Exits with 1 where a picture could not be read. Example: `scanlab classify photos/ --weights vim_t.pth`
    """
    paths = find_pictures(images)
    model = open_model(weights, img_size=size, scan=backend)
    pending = classify_pictures(model, paths, top=top, batch=batch)
    results = list(track(pending, "classify", len(paths), console=notes, transient=True, disable=as_json))
    if as_json:
        print_json([_as_json(result) for result in results])
    else:
        for result in results:
            _show(result)
    if any(result.reason for result in results):
        raise typer.Exit(Exit.CHECK_FAILED)


def _as_json(result: Classified) -> dict[str, Any]:
    return asdict(result) | {"path": str(result.path)}


def _show(result: Classified) -> None:
    out.print(f"[bold]{escape(str(result.path))}[/]")
    if result.reason:
        out.print(f"  [red]{escape(result.reason)}[/]")
    for name, probability in result.classes:
        out.print(f"  {probability:6.1%}  {escape(name)}")
