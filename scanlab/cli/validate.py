"""`scanlab validate`: the model on an image under every backend."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from scanlab import registry
from scanlab.cli.console import AsJson, Exit, notes, out, print_json
from scanlab.errors import InputError
from scanlab.models.capture import trained_like_
from scanlab.models.images import open_image, prepare, sample_photograph
from scanlab.models.vision_mamba import RELEASED
from scanlab.validate import Validation
from scanlab.validate import validate as validate_model


def validate(
    image: Annotated[Path | None, typer.Argument(help="A photograph; one that ships with scikit-learn.")] = None,
    model: Annotated[str, typer.Option(help="vim-tiny, vim-small, vim-base or a stride8 kin.")] = "vim-tiny",
    size: Annotated[int, typer.Option(help="Pixels along one side of the image that the model sees.")] = 224,
    backends: Annotated[str | None, typer.Option(help="Separated by spaces; all by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """The model on an image under every backend: logits and classes against the float64 model, latency, memory.

    Exits with 1 where a backend breaks the logit budget or changes the first class.
    Example: `scanlab validate photo.jpg --model vim-small`
    """
    name = model.replace("-", "_")
    if name not in RELEASED:
        raise InputError(f"--model {model}: must be one of {', '.join(each.replace('_', '-') for each in RELEASED)}.")
    photograph = sample_photograph() if image is None else open_image(image)
    build = functools.partial(RELEASED[name], img_size=size)
    weights = trained_like_(build(scan="reference")).state_dict()
    selections = backends.split() if backends else [each.name for each in registry.load_all()[0]]
    with notes.status("") as status:
        results = validate_model(
            build, weights, prepare(photograph, size)[None], selections, lambda step: status.update(f"validate: {step}")
        )
    if as_json:
        print_json([result.to_json() for result in results])
    else:
        _show(results)
    if not all(result.passed for result in results):
        raise typer.Exit(Exit.CHECK_FAILED)


def _show(results: list[Validation]) -> None:
    table = Table(
        "backend", "verdict", "logits off by", "top 1", "top 5", "forward pass", "memory", box=None, pad_edge=False
    )
    for result in results:
        if result.latency_ms is None or result.logit_difference is None or result.top5_agreement is None:
            table.add_row(result.backend, "[dim]did not run[/]")
            continue
        first, middle, third = result.latency_ms
        memory = "unknown" if result.peak_bytes is None else f"{result.peak_bytes / 2**20:.1f} MiB"
        table.add_row(
            result.backend,
            "[green]ok[/]" if result.passed else "[bold red]wrong[/]",
            f"{result.logit_difference:.1e}",
            "same" if result.top1_agrees else "differs",
            f"{result.top5_agreement:.0%}",
            f"{middle:.1f} ms ({first:.1f} to {third:.1f})",
            memory,
        )
    out.print(table)
    for result in results:
        if result.reason:
            out.print(f"[bold]{result.backend}[/]: {escape(result.reason)}")
