"""`scanlab verify --model`: check every backend by the outputs of whole models."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.markup import escape
from rich.table import Table

from scanlab.cli.console import Exit, notes, out, plain_table, print_json
from scanlab.contract import registry
from scanlab.errors import InputError, did_you_mean
from scanlab.models.capture import trained_like_
from scanlab.models.images import open_image, prepare, sample_photograph
from scanlab.models.validation import TASK_BUDGETS, TaskValidation, Validation, profiled_selections, validate_task
from scanlab.models.validation import validate as validate_model
from scanlab.models.vision_mamba import RELEASED
from scanlab.runtime.profile import load_profile

DIGITS = "digits"


def verify_model(
    model: str,
    selections: Sequence[str] | None,
    image: Path | None,
    size: int,
    dtypes: str | None,
    as_json: bool,
) -> None:
    """Check models under every backend: held-out digits in every dtype, and a photograph in float32.

    The digits are read by a small trained model. The model on the photograph has synthetic weights of a trained
    model's scale, and its forward pass is timed. Exits with 1 where a backend exceeds the allowed error of the
    logits or changes a first class.

    Args:
        model: A released variant such as "vim-tiny", or "digits" for the trained model alone.
        selections: Backends, such as "native" or "chunked:threads=1"; by default all, and those in the profile.
        image: The photograph; the one that scikit-learn ships by default.
        size: Pixels along one side of the image that the model sees.
        dtypes: Names of dtypes of the digits model, separated by spaces; all of them by default.
        as_json: Print JSON instead of tables.
    """
    name = model.replace("-", "_")
    if name != DIGITS and name not in RELEASED:
        known = [each.replace("_", "-") for each in (*RELEASED, DIGITS)]
        raise InputError(f"--model {model}: must be one of {', '.join(known)}.{did_you_mean(model, known)}")
    chosen = dtypes.split() if dtypes else list(TASK_BUDGETS)
    for dtype in chosen:
        if dtype not in TASK_BUDGETS:
            near = did_you_mean(dtype, TASK_BUDGETS)
            raise InputError(f"--dtypes {dtype}: must be of {', '.join(TASK_BUDGETS)}.{near}")
    photograph = None
    if name != DIGITS:
        photograph = sample_photograph() if image is None else open_image(image)
    elif image is not None:
        raise InputError(f"{image} with --model {DIGITS}: the trained model reads its own digits; leave the image out.")
    every = [*(each.name for each in registry.load_all(registry.DEFAULT_OP)[0]), *profiled_selections(load_profile())]
    chosen_selections = list(selections) if selections else every
    shown: list[Validation] = []
    with notes.status("") as status:

        def say(step: str) -> None:
            status.update(f"verify: {step}")

        task = validate_task(chosen_selections, chosen, say)
        if photograph is not None:
            build = functools.partial(RELEASED[name], img_size=size)
            weights = trained_like_(build(scan="reference")).state_dict()
            shown = validate_model(build, weights, prepare(photograph, size)[None], chosen_selections, say)
    if as_json:
        print_json({"digits": [each.to_json() for each in task], "photograph": [each.to_json() for each in shown]})
    else:
        _show_task(task)
        _show(shown)
    if not (all(each.passed for each in task) and all(each.passed for each in shown)):
        raise typer.Exit(Exit.CHECK_FAILED)


def _show_task(results: Sequence[TaskValidation]) -> None:
    table = plain_table("backend", "dtype", "verdict", "read rightly", "as in float64", "logits off by")
    for result in results:
        numbers: tuple[str, ...] = ()
        if result.accuracy is not None and result.top1_agreement is not None:
            numbers = (f"{result.accuracy:.1%}", f"{result.top1_agreement:.1%}", f"{result.logit_error:.1e}")
        table.add_row(result.selection, result.dtype, _verdict(result, ran=bool(numbers)), *numbers)
    _print(
        "The trained digits model on digits that were held out; errors as shares of the largest logit", table, results
    )


def _show(results: Sequence[Validation]) -> None:
    table = plain_table("backend", "verdict", "logits off by", "top 1", "top 5", "forward pass", "memory")
    for result in results:
        if result.latency_ms is None or result.logit_difference is None or result.top5_agreement is None:
            table.add_row(result.selection, _verdict(result, ran=False))
            continue
        first, middle, third = result.latency_ms
        memory = "unknown" if result.peak_bytes is None else f"{result.peak_bytes / 2**20:.1f} MiB"
        table.add_row(
            result.selection,
            _verdict(result, ran=True),
            f"{result.logit_difference:.1e}",
            "same" if result.top1_agrees else "differs",
            f"{result.top5_agreement:.0%}",
            f"{middle:.1f} ms ({first:.1f} to {third:.1f})",
            memory,
        )
    if results:
        _print("The model on a photograph, beside the float64 model", table, results)


def _verdict(result: Validation | TaskValidation, ran: bool) -> str:
    if not result.passed:
        return "[bold red]failed[/]"
    return "[green]ok[/]" if ran else "[dim]did not run[/]"


def _print(title: str, table: Table, results: Sequence[Validation | TaskValidation]) -> None:
    out.print(f"[bold]{title}[/]")
    out.print(table)
    for selection, reason in dict.fromkeys((each.selection, each.reason) for each in results if each.reason):
        out.print(f"[bold]{selection}[/]: {escape(reason)}")
    out.print()
