"""The example plug-in installs as a stranger's would, is found, and passes the contract it is told to."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "experiments" / "example_backend"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment that has the example installed in a folder of its own; built from a copy, which pip writes to."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, folder / "source")
    target = folder / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", target, folder / "source"], check=True)
    return os.environ | {"PYTHONPATH": str(target)}


def run(environment, *command, **options):
    result = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_registry_finds_it_and_it_scans(installed):
    code = """
import json, torch
from scanlab.contract import registry
from scanlab.contract.problem import ScanProblem, make_inputs
problem = ScanProblem(batch=1, dim=4, length=9)
ours, theirs = (registry.get(name).build(problem)(*make_inputs(problem)) for name in ("reference", "example"))
print(json.dumps([registry.names(), (ours.out - theirs.out).abs().max().item(), registry.get("example").rejects(
    problem.replace(gradients=True))]))
"""
    names, difference, reason = json.loads(run(installed, "-c", code))
    assert "example" in names
    assert "reference" in names
    assert difference < 1e-5
    assert reason == "it has no gradients"


def test_it_passes_the_contract(installed, tmp_path):
    shutil.copy(EXAMPLE / "test_example.py", tmp_path)
    printed = run(installed, "-m", "pytest", "-p", "no:cacheprovider", "-q", "test_example.py", cwd=tmp_path)
    assert " passed" in printed
    assert "failed" not in printed


def test_it_is_not_installed_here():
    code = "from scanlab.contract import registry; print('example' in registry.names())"
    assert run({**os.environ, "PYTHONPATH": ""}, "-c", code).strip() == "False"
