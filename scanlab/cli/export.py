"""`scanlab export`: a model as files that run without scanlab."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from scanlab.cli.console import AsJson, Exit, out, print_json, steps
from scanlab.contract.space import config_key
from scanlab.errors import InputError, did_you_mean
from scanlab.export.bundle import Exported, Format
from scanlab.export.bundle import export as write_folder
from scanlab.models.capture import trained_like_
from scanlab.models.checkpoints import open_model
from scanlab.models.vision_mamba import RELEASED

SYNTHETIC = "synthetic"


class Target(StrEnum):
    """Uses of the exported files."""

    AOTI = "aoti"
    ONNX = "onnx"
    ONNX_LINEAR_ATTENTION = "onnx-linear-attention"
    BOTH = "both"


FORMATS: Mapping[Target, tuple[Format, ...]] = {
    Target.AOTI: ("aoti",),
    Target.ONNX: ("onnx",),
    Target.ONNX_LINEAR_ATTENTION: ("onnx-linear-attention",),
    Target.BOTH: ("aoti", "onnx"),
}


def export(
    weights: Annotated[
        str,
        typer.Option(
            help="A .pth or .safetensors file; a published name such as vim_t_midclstok_76p1acc; or synthetic,"
            " for noise like trained weights, to try an export."
        ),
    ],
    to: Annotated[Path, typer.Option(help="The folder to write; new, or empty.")],
    model: Annotated[str, typer.Option(help="vim-tiny, vim-small, vim-base or a stride8 variant.")] = "vim-tiny",
    target: Annotated[
        Target,
        typer.Option(
            "--format",
            help="aoti is for torch, onnx for ONNX Runtime; onnx-linear-attention for 1.32 or newer, with one of its"
            " operators for each scan. both is aoti and onnx.",
        ),
    ] = Target.AOTI,
    size: Annotated[int, typer.Option(min=1, help="Pixels along one side of the model's input.")] = 224,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Write a model with its weights as files that run without scanlab, checked in a fresh process.

    For torch: a package of AOTInductor, which is compiled here and needs no compiler where it is used, with the
    kernels that it calls and the profile that it follows; for processors like this one. For ONNX Runtime: a graph
    of standard operators, or one with its LinearAttention. Beside them a manifest and run.py, which classifies a
    picture. Exits with 1, and writes nothing, where the logits are not the model's.

    Example:
        scanlab export --weights synthetic --format onnx --size 64 --to vim-onnx
    """
    name = model.replace("-", "_")
    if name not in RELEASED:
        known = [each.replace("_", "-") for each in RELEASED]
        raise InputError(f"--model {model}: must be one of {', '.join(known)}.{did_you_mean(model, known)}")
    if weights == SYNTHETIC:
        opened = trained_like_(RELEASED[name](img_size=size)).eval()
    else:
        opened = open_model(weights, name=name, img_size=size)
    origin = {"model": name, "weights": weights}
    if Path(weights).is_file():
        origin["weights_sha256"] = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    with steps("export") as say:
        exported = write_folder(opened, to, FORMATS[target], batch=batch, origin=origin, say=say)
    if as_json:
        print_json(_as_json(exported))
    else:
        _show(exported, to)
    if not exported.passed:
        raise typer.Exit(Exit.CHECK_FAILED)


def _as_json(exported: Exported) -> dict[str, Any]:
    decided = {problem.key: asdict(decision) for problem, decision in exported.decided.items()}
    return {"checks": [asdict(check) for check in exported.checks], "decided": decided}


def _show(exported: Exported, folder: Path) -> None:
    for problem, decision in exported.decided.items():
        frozen = f"{decision.backend} {config_key(decision.config)} is frozen in for {problem.key}: {decision.reason}."
        out.print(escape(frozen))
    for check in exported.checks:
        verdict = "[green]ok[/]" if check.passed else "[bold red]failed[/]"
        fact = check.reason or f"logits off by {check.difference:.1e} of the largest, of {check.tolerance:.0e} allowed"
        out.print(f"[bold]{check.file}[/] {verdict}  {escape(fact)}")
    written = f"wrote {folder}: python {folder / 'run.py'} PICTURE" if exported.passed else "nothing was written"
    out.print(escape(written))
