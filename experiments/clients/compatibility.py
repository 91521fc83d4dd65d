"""Run models of public repositories on the drop-in, compare them with upstream's references, and write the page.

    python experiments/clients/compatibility.py CHECKOUTS [--only Vim] [--no-gradients]

CHECKOUTS holds a git checkout of each repository of the catalogue, in a folder called "owner+name"; one of
state-spaces/mamba gives the references. What the repositories import beside torch must be installed, such as timm,
einops, fvcore and monai. Each model runs in processes of its own: first on the drop-in, as it is, with `--cpu`, and
with the repository's own mamba_ssm, until one of them succeeds; then with the same weights on the PyTorch functions
that upstream tests its kernels with. With `--no-gradients` only outputs and times are taken, and errors of gradients
that are known stay: run it so on a quiet machine for the times.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import common
import pandas as pd
import torch
import typer
from catalogue import CLIENTS, Client
from torch import Tensor

from scanlab.errors import InputError
from scanlab.report import tables
from scanlab.report.formatting import milliseconds, times

OBSERVE = Path(__file__).parent / "observe.py"
PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
LIMIT_S = 150
# text of the page -> options of observe.py; the first that succeeds counts
WAYS = {
    "as it is": [],
    "with `--cpu`": ["--cpu"],
    "with its fork": ["--fork"],
    "with its fork and `--cpu`": ["--fork", "--cpu"],
}
INTRODUCTION = """# Compatibility

Models of public repositories on the drop-in, on a CPU: `scanlab run SCRIPT` ("as it is"), `scanlab run --cpu SCRIPT`
where the code asks for CUDA devices, and with the repository's own `mamba_ssm` on the search path where it has names of
its own. Weights are random. The errors are those of the outputs, and of the gradients of all parameters together, as a
share of the largest value, against the same code on the PyTorch functions that upstream tests its kernels with; that of
the gradients is missing where those functions take more than two minutes for them. The times are medians of a forward
pass on one thread, and "speed-up" is over those functions, which run on a CPU without scanlab.
"""


def observed(checkouts: Path, model: str, file: Path, options: list[str]) -> dict[str, Any] | str:
    """Return the results of observe.py, or the last line of its error."""
    command = [sys.executable, str(OBSERVE), str(checkouts), model, str(file), *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        if not file.exists():  # results that are computed last may be missing
            return f"it takes more than {LIMIT_S} s"
    else:
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.strip(" │╰╯─")]
            return lines[-1] if lines else f"it ends with status {done.returncode}"
    loaded: dict[str, Any] = torch.load(file)
    return loaded


def error(got: list[Tensor], want: list[Tensor]) -> float:
    """Return the largest error as a share of the largest value."""
    largest = max(float(each.abs().max()) for each in want)
    return max(float((one - other).abs().max()) for one, other in zip(got, want, strict=True)) / largest


def row_of(checkouts: Path, client: Client, known: Mapping[str, Any], gradients: bool) -> dict[str, Any]:
    """Return the row of a client in the table.

    Args:
        checkouts: Folder of the checkouts.
        client: The client.
        known: Its row so far.
        gradients: Differentiate too; else the error of the gradients is the known one.
    """
    common_options = [] if gradients else ["--no-gradients"]
    checkout = checkouts / client.repository.replace("/", "+")
    if not checkout.exists():
        raise InputError(f"there is no {checkout}: clone https://github.com/{client.repository} there.")
    commit = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    row: dict[str, Any] = {"repository": client.repository, "commit": commit, "model": client.model}
    with tempfile.TemporaryDirectory() as folder:
        ours, reference = Path(folder) / "ours.pt", Path(folder) / "reference.pt"
        tried: dict[str, dict[str, Any] | str] = {}
        for way, options in WAYS.items():
            if client.forks or "--fork" not in options:
                tried[way] = got = observed(checkouts, client.model, ours, [*options, *common_options])
                if isinstance(got, dict):
                    break
                print(f"{client.repository} {way}: {got}", flush=True)
        way, got = next(reversed(tried.items()))
        if isinstance(got, str):
            return row | {"way": f"no: {tried['as it is']}"}
        fork = ["--fork"] if client.forks else []
        want = observed(checkouts, client.model, reference, ["--cpu", *fork, *common_options, "--reference", str(ours)])
        row |= {"way": way, "scanlab_s": got["seconds"]}
        if isinstance(want, str):
            print(f"{client.repository}: no reference: {want}", flush=True)
            return row
        row |= {"output_error": error(got["outputs"], want["outputs"]), "reference_s": want["seconds"]}
        if not gradients:
            row["gradient_error"] = known.get("gradient_error")
        elif want["gradients"] and got["gradients"]:
            found = [got["gradients"][name] for name in want["gradients"]]
            row["gradient_error"] = error(found, list(want["gradients"].values()))
        return row


def spelled(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows as text."""

    def text(value: Any, spell: Any) -> str:
        return "" if pd.isna(value) else spell(value)

    speedups = frame.reference_s / frame.scanlab_s
    return pd.DataFrame(
        {
            "repository": [f"[{each}](https://github.com/{each})" for each in frame.repository],
            "commit": frame.commit,
            "model": frame.model,
            "how it runs": frame.way,
            "error of outputs": [text(each, "{:.0e}".format) for each in frame.output_error],
            "of gradients": [text(each, "{:.0e}".format) for each in frame.gradient_error],
            "time": [text(each, lambda seconds: milliseconds(1e3 * seconds)) for each in frame.scanlab_s],
            "speed-up": [text(each, times) for each in speedups],
        }
    )


def main(
    checkouts: Path,
    only: Annotated[str, typer.Option(help="A part of the name of the repository or of the model.")] = "",
    gradients: Annotated[bool, typer.Option(help="Compare gradients too.")] = True,
    page: Path = PAGE,
    out: Path = common.RESULTS / "compatibility",
) -> None:
    """Run the clients, and write the page; rows of other clients stay."""
    asked = [client for client in CLIENTS if only.lower() in f"{client.repository} {client.model}".lower()]
    if not asked:
        raise InputError(f"--only {only}: is not part of any of {', '.join(each.repository for each in CLIENTS)}.")
    caption = common.place(threads=1)  # as observe.py takes
    numbers = out / f"{common.silicon_name()}.csv"
    columns = ["repository", "commit", "model", "way", "output_error", "gradient_error", "scanlab_s", "reference_s"]
    frame = pd.read_csv(numbers) if numbers.exists() else pd.DataFrame(columns=columns)
    known = {(each["repository"], each["model"]): each for each in frame.to_dict("records")}
    for client in asked:
        key = client.repository, client.model
        row = known[key] = row_of(checkouts, client, known.get(key, {}), gradients)
        print(row, flush=True)
        ordered = [known[key] for each in CLIENTS if (key := (each.repository, each.model)) in known]
        frame = pd.DataFrame(ordered, columns=columns)
        out.mkdir(parents=True, exist_ok=True)
        numbers.write_text(tables.csv(frame))
        made = "An empty cell was not measured. Made by `python experiments/clients/compatibility.py CHECKOUTS`:\n\n"
        made += "\n".join(f"- {part}" for part in caption.split("; "))
        page.write_text(f"{INTRODUCTION}\n{tables.markdown(spelled(frame))}\n\n{made}\n")


if __name__ == "__main__":
    typer.run(main)
