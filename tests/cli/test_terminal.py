"""The command line as a person meets it: pasted examples, narrow terminals, colours, progress, and mistakes."""

from __future__ import annotations

import io
import os
import pty
import re
import shlex
import subprocess
import sys
from functools import partial

import pytest
import typer
from rich.console import Console

from helpers.simulated import tune_simulated
from scanlab.cli.app import COMMANDS, load_command, overview
from scanlab.cli.console import plain_table
from scanlab.errors import did_you_mean
from scanlab.export.bundle import Exported
from scanlab.models.vision_mamba import RELEASED, VisionMamba

SMALL = "batch=1,dim=6,length=20,state=4"
# A measurement may come to nothing on a busy machine, and doctor finds what other tests have loaded.
CODES = {"bench": (0, 3), "doctor": (0, 1)}
# Makes an example quick: a smaller problem and a shorter budget, given after its own words.
QUICK = {
    "verify": ["--problem", SMALL],
    "bench": ["--problem", SMALL, "--budget", "1s"],
    "tune": ["--trials", "2", "--backends", "two_phase"],
}


def example_of(name: str) -> list[str]:
    """Return the words of the first example in the help of a command."""
    text = typer.main.get_command(load_command(name)).help or ""
    found = re.search(r"Example:\n +scanlab ([^#\n]+)", text)
    assert found, f"{name} has no example"
    return shlex.split(found[1])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_fits_into_80_columns_and_its_example_into_a_line(run, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    outcome = run(name, "--help")
    assert outcome.code == 0
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert shlex.join(["scanlab", *example_of(name)]) in outcome.out.replace('"', "'")


@pytest.mark.slow
def test_the_examples_work_when_pasted_one_after_the_other(run, monkeypatch):
    # Times are made up, no graph is written, and what would take long is smaller.
    written = Exported(checks=(), decided={})
    monkeypatch.setattr("scanlab.cli.export.write_folder", lambda *arguments, **options: written)
    monkeypatch.setattr("scanlab.cli.tune_problems.tune_problem", partial(tune_simulated, time_ms=lambda each: 1.0))
    monkeypatch.setattr("scanlab.cli.tune_problems.MIN_SWEEP_S", 1e9)
    monkeypatch.setitem(RELEASED, "vim_tiny", partial(VisionMamba, depth=1, embed_dim=32))
    for name in COMMANDS:
        outcome = run(*example_of(name), *QUICK.get(name, []))
        assert outcome.code in CODES.get(name, (0,)), f"{name}: {outcome.err}"


def on_a_terminal(columns: int, *words: str, **variables: str) -> str:
    """Return what a command prints on a terminal of so many columns."""
    leader, follower = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": "xterm-256color", "COLUMNS": str(columns), **variables}
    process = subprocess.Popen(
        [sys.executable, "-m", "scanlab", *words], stdin=follower, stdout=follower, stderr=follower, env=environment
    )
    os.close(follower)
    printed = b""
    try:
        while chunk := os.read(leader, 65536):
            printed += chunk
    except OSError:  # the other end was closed
        pass
    os.close(leader)
    assert process.wait() == 0
    return printed.decode().replace("\r\n", "\n")


COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3|9)\d")


def test_a_terminal_of_80_columns_gets_whole_words_and_colours():
    printed = on_a_terminal(80, "list")
    assert COLOUR.search(printed)
    plain = re.sub(r"\x1b\[[\d;]*m", "", printed)
    assert max(len(line) for line in plain.splitlines() if line[:2] in ("ok", "--", "  ")) <= 80
    assert "…" not in plain
    assert "causal_conv1d_native" in plain


def test_the_overview_fits_into_80_columns():
    assert max(map(len, overview().splitlines())) <= 80


def test_no_color_is_obeyed():
    assert not COLOUR.search(on_a_terminal(80, "list", "linear", NO_COLOR="1"))


@pytest.mark.parametrize("width", [80, 100, 140])
def test_cells_of_a_table_are_folded_and_never_cut(width):
    console = Console(width=width, record=True, file=io.StringIO())
    table = plain_table("problem", "serves", "evidence")
    key = "batch=1,dim=384,length=197,state=16,direction=bidirectional,layout=dim_last"
    table.add_row(key, "native threads=0 time_block=64 channel_tile=64 time_chunks=1 exp=exact", "hold-out")
    console.print(table)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "hold-out" in text


def test_progress_is_not_printed_where_nobody_watches(run):
    outcome = run("verify", "two_phase", "--problem", SMALL)
    assert outcome.code == 0
    assert outcome.err.strip() == ""
    assert "\r" not in outcome.out


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["list", "nativ"], "native"),
        (["verify", "chunked:chnk=8"], "chunk"),
        (["best", "--problem", "batch=1,dim=4,lenght=8"], "length"),
        (["best", "--problem", "batch=1,dim=4,length=8,dtype=flaot32"], "float32"),
        (["best", "--op", "linaer", "--problem", "rows=1"], "linear"),
        (["best", "--suite", "vim-tinny"], "vim-tiny"),
        (["verify", "--model", "vim-tinny"], "vim-tiny"),
        (["export", "--model", "vim-tinny", "--weights", "synthetic", "--to", "here"], "vim-tiny"),
        (["reprot"], "report"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(run, words, meant):
    outcome = run(*words)
    assert outcome.code == 2
    assert f"Did you mean {meant!r}?" in outcome.err


def test_a_name_that_is_like_no_other_suggests_nothing():
    assert did_you_mean("xyz", ["native", "chunked"]) == ""


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["run", "."], "is a folder without a __main__.py"),
        (["run", "-m", "no_such_module"], "there is no module no_such_module"),
        (["report", "--compare", "here", "there"], "no trials are recorded in here"),
        (["best", "--problem", ""], "lacks batch, dim, length"),
        (["best", "--image", "."], "cannot be read as a picture"),
        (["profile", "show", "xx"], "must be name=value"),
        (["tune", "--trials", "0"], "error: Invalid value for '--trials'"),
        (["tune", "--capture", "missing.py"], "--capture missing.py: there is no such script."),
    ],
)
def test_a_mistake_has_a_sentence_and_no_traceback(run, words, complaint):
    outcome = run(*words)
    assert outcome.code == 2
    assert complaint in outcome.err
    assert "Traceback" not in outcome.err
