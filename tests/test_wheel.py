"""The wheel is the whole of scanlab: it holds every file, and runs in an environment that knows no source tree.

And what cannot be had everywhere, a compiler or fcntl, takes away what it is needed for and nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from scanlab.contract import registry

ROOT = Path(__file__).parents[1]
PACKAGES = {"scanlab": "scanlab", "kernels/scanlab_kernels": "scanlab_kernels"}
SHIPPED = (".py", ".cpp", ".h", ".toml", ".json", ".safetensors", ".typed", ".html", ".css", ".md", ".txt")

SCAN = """
import json, pathlib, torch, scanlab
from scanlab.contract.problem import ScanProblem, make_inputs
u, delta, A, B, C, D, z, bias, _ = make_inputs(ScanProblem(batch=1, dim=8, length=20, state=4))[0]
arguments = dict(D=D, z=z, delta_bias=bias, delta_softplus=True)
out = scanlab.selective_scan_fn(u, delta, A, B, C, **arguments)
expected = scanlab.selective_scan_fn(u, delta, A, B, C, **arguments, backend="reference")
print(json.dumps({
    "home": str(pathlib.Path(scanlab.__file__).parent),
    "off": float((out - expected).abs().max()),
    "served": scanlab.explain().splitlines()[0],
}))
"""


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], env=os.environ | environment, capture_output=True, text=True, check=False
    )


def succeeds(*command: str | Path, **environment: str) -> str:
    done = run(*command, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the tree without what an earlier build left there."""
    pytest.importorskip("build", reason="the package `build` is not installed")
    here = tmp_path_factory.mktemp("wheel")
    for folder in ("scanlab", "kernels"):
        shutil.copytree(ROOT / folder, here / "tree" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, here / "tree")
    succeeds(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", here / "dist", here / "tree")
    (built,) = (here / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The Python of an environment with this wheel and the libraries of ours, but not the scanlab of ours."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=os.name != "nt")
    scripts = home / ("Scripts" if os.name == "nt" else "bin")
    own = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    # a folder that is named here brings its packages along and not its own .pth files, so no editable install
    (own / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    succeeds(sys.executable, "-m", "pip", "--python", scripts / "python", "install", "--no-deps", "--no-index", wheel)
    return scripts / "python"


def test_every_file_of_the_packages_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in PACKAGES.items()
        for path in (ROOT / folder).rglob("*")
        if (path.suffix in SHIPPED and path.name != "README.md") or path.name == "py.typed"
    ]
    assert len(files) > 100
    assert sorted(set(files) - names) == []


def test_the_wheel_holds_nothing_else(wheel):
    for name in zipfile.ZipFile(wheel).namelist():
        assert ".dist-info/" in name or (
            name.startswith(("scanlab/", "scanlab_kernels/")) and name.endswith(SHIPPED)
        ), name


def test_the_installed_wheel_lists_its_backends(python, tmp_path):
    facts = json.loads(succeeds(python, "-I", "-m", "scanlab", "list", "--json"))
    assert facts["failures"] == {}
    assert {"reference", "native"} <= {each["name"] for each in facts["backends"]}
    assert succeeds(python.with_name("scanlab"), "list", "reference")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpp_torch", "native"])
def test_the_installed_wheel_compiles_its_kernels_from_its_own_sources(python, tmp_path, backend):
    reason = registry.get(backend).unavailable()
    if reason is not None:
        pytest.skip(reason)
    environment = {"SCANLAB_BACKEND": backend, "XDG_DATA_HOME": str(tmp_path)}
    if backend == "cpp_torch":  # small enough to be compiled each time; native is, once for each content of its sources
        environment["SCANLAB_CACHE"] = str(tmp_path)
    facts = json.loads(succeeds(python, "-I", "-c", SCAN, **environment))
    assert Path(facts["home"]).is_relative_to(python.parents[1])
    assert facts["off"] < 1e-4
    assert backend in facts["served"]


@pytest.mark.slow
def test_without_a_compiler_the_pytorch_rungs_serve(python, tmp_path):
    environment = {"PATH": str(tmp_path), "SCANLAB_CACHE": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    done = run(python, "-I", "-c", SCAN, **environment)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["off"] < 1e-4
    _, _, decision = facts["served"].partition(": ")
    assert not decision.startswith("native ")
    assert "native: there is no C++ compiler" in decision  # what stands before it says why it does not serve
    assert "serves this scan" in done.stderr
    backends = json.loads(succeeds(python, "-I", "-m", "scanlab", "list", "--json", **environment))["backends"]
    reasons = {each["name"]: each["unavailable"] for each in backends}
    assert "there is no C++ compiler" in reasons["native"]
    assert "install a C++20 compiler" in reasons["native"]
    assert {name for name in ("reference", "two_phase", "chunked", "associative") if reasons[name]} == set()


def test_nothing_that_only_unix_has_is_needed_to_import_scanlab():
    program = """
import sys
only_unix = ("fcntl", "resource", "pwd", "grp", "termios")
sys.modules |= dict.fromkeys(only_unix)
import importlib, pkgutil, scanlab
from scanlab.contract import registry
for package in ("scanlab", "scanlab_kernels"):
    module = importlib.import_module(package)
    for found in pkgutil.walk_packages(module.__path__, f"{module.__name__}."):
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:  # of an extra, which need not be installed
            if error.name in only_unix or error.name.startswith("scanlab"):
                raise
print(sorted(registry.load_all()[1]))
"""
    assert succeeds(sys.executable, "-c", program).strip() == "[]"
