"""Pages of the documentation: samples run, commands parse, settings are told as they are, links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import typer

from scanlab import __version__, settings
from scanlab.cli.app import COMMANDS, load_command

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BLOB = "https://github.com/scanlab/scanlab/"


def blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of `page` in one language, but for those that include a file."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [block for block in found if "--8<--" not in block]


# The sample of add-a-backend.md is the test of the package that the page makes.
RUN = [page for page in PAGES if blocks(page, "python") and page.name != "add-a-backend.md"]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_samples_of_a_page_run_in_their_order(page, tmp_path):
    (tmp_path / "page.py").write_text("\n".join(blocks(page, "python")))
    done = subprocess.run([sys.executable, "page.py"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr


def test_the_backend_of_the_documentation_installs_is_found_and_passes_its_contract(tmp_path):
    page = ROOT / "docs" / "add-a-backend.md"
    (tmp_path / "pyproject.toml").write_text(*blocks(page, "toml"))
    (tmp_path / "test_my_backend.py").write_text(*blocks(page, "python"))
    shutil.copy(ROOT / "examples" / "4_write_a_backend.py", tmp_path / "my_backend.py")
    python = partial(subprocess.run, capture_output=True, text=True, cwd=tmp_path, check=False)
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", "site", "."]
    done = python([sys.executable, *install])
    assert done.returncode == 0, done.stderr
    (tmp_path / "my_backend.py").unlink()
    installed = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    found = "from scanlab.contract import registry; print(registry.get('mine').summary)"
    for words in (["-c", found], ["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_backend.py"]):
        done = python([sys.executable, *words], env=installed)
        assert done.returncode == 0, done.stdout + done.stderr


def commands() -> list[str]:
    """Return the scanlab commands of all pages."""
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    # The texts of settings name commands without their arguments.
    prose = [re.sub(r"^\| `SCANLAB_.*$", "", page.read_text(), flags=re.MULTILINE) for page in PAGES]
    told = [command for text in prose for command in re.findall(r"`(scanlab [^`.]+)`", text)]
    return sorted({line.partition("#")[0].strip() for line in [*lines, *told] if line.startswith("scanlab ")})


@pytest.mark.parametrize("line", commands())
def test_a_command_has_options_and_values_that_exist(line):
    _, name, *words = shlex.split(line)
    assert name in COMMANDS
    if words and "..." not in line:
        typer.main.get_command(load_command(name)).make_context(name, words)


def test_every_setting_is_told_as_it_is():
    text = (ROOT / "docs" / "environment.md").read_text()
    rows = [f"| `{setting.name}` | {setting.meaning} | {setting.default} |" for setting in settings.ALL]
    assert [line for line in text.splitlines() if line.startswith("| `SCANLAB_")] == rows


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_into_the_repository_lead_to_files(page):
    links = re.findall(rf"\({BLOB}(?:blob|tree)/main/([^)#]+)\)", page.read_text())
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_version_is_the_same_wherever_it_is_written():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
    for page in ("README.md", "docs/install.md"):
        assert set(re.findall(r"scanlab-(\d[\d.]*)-py3", (ROOT / page).read_text())) == {__version__}


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "reference" / "api" / "index.html").exists()
