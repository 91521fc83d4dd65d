"""The README and CONTRIBUTING: their samples run, their commands and links exist, and the README stays short."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scanlab.cli.app import COMMANDS
from scanlab.report.formatting import three_digits

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md")
MAX_WORDS = 900


def samples(page: str) -> list[str]:
    """Return the Python samples of `page`."""
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("page", "number"), [(page, index) for page in PAGES for index in range(len(samples(page)))])
def test_a_sample_runs_in_a_fresh_process(page, number, tmp_path):
    (tmp_path / "sample.py").write_text(samples(page)[number])
    done = subprocess.run([sys.executable, "sample.py"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr


def test_the_readme_has_samples_and_is_read_in_two_minutes():
    text = (ROOT / "README.md").read_text()
    assert samples("README.md")
    assert len(text.split()) <= MAX_WORDS


def test_the_table_has_the_numbers_of_the_report_it_names():
    text = (ROOT / "README.md").read_text()
    (report,) = re.findall(r"^Source: \[.+?\]\((.+?)/report\.md\)", text, flags=re.MULTILINE)
    with (ROOT / report / "tables" / "speedups.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["median_ms"]]
    columns = ("median_ms", "speedup", "speedup_low", "speedup_high")
    numbers = {row["backend"]: [three_digits(float(row[name])) for name in columns] for row in rows}
    table = re.findall(r"^\| `(\w+)`: .+? \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \|$", text, re.MULTILINE)
    assert {name: row for name, *row in table} == numbers


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_are_named_exist(page):
    named = set(re.findall(r"`?scanlab ([a-z]+)(?= |`)", "\n".join(_commands((ROOT / page).read_text()))))
    assert named <= COMMANDS.keys()


@pytest.mark.parametrize("page", [*PAGES, "results/README.md", "examples/README.md"])
def test_links_lead_to_files(page):
    folder = (ROOT / page).parent
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    missing = [link for link in links if "://" not in link and not (folder / link).exists()]
    assert not missing


def _commands(text: str) -> list[str]:
    """Return the command lines in `text`: what stands in backticks and in indented blocks."""
    return [*re.findall(r"`(scanlab [^`]+)`", text), *re.findall(r"^    (scanlab .+)$", text, flags=re.MULTILINE)]
