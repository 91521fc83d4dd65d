"""The folder of `export`: it runs without scanlab and without a compiler, anywhere, and is written whole or not."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.shared import filled_once
from helpers.tiny_vim import trained_tiny_vim
from scanlab.contract import registry
from scanlab.contract.problem import ScanProblem
from scanlab.errors import InputError
from scanlab.export import bundle
from scanlab.export.bundle import SCRIPTS, Exported, export
from scanlab.models.classify import classify
from scanlab.models.images import sample_photograph

for library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(library, reason=f"the extra `onnx` is not installed: {library}")
BATCH = 2
# As `python run.py` runs it, but scanlab cannot be found.
BLOCKED = """
import os, runpy, sys
sys.modules["scanlab"] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, Exported]:
    """An export, moved, and what was said of it."""
    reason = registry.get("native").unavailable()
    if reason is not None:
        pytest.skip(reason)

    def write(folder: Path) -> None:
        exported = export(trained_tiny_vim(), folder / "made", ("aoti", "onnx"), batch=BATCH, origin={"model": "tiny"})
        assert exported.passed, exported
        (folder / "made").rename(folder / "elsewhere")
        (folder / "said").write_bytes(pickle.dumps(exported))

    folder = filled_once(tmp_path_factory, "exported", write)
    return folder / "elsewhere", pickle.loads((folder / "said").read_bytes())


def test_both_models_give_the_logits_in_a_fresh_process(written):
    checks = {check.file: check for check in written[1].checks}
    assert set(checks) == {"model.pt2", "model.onnx"}
    assert checks["model.pt2"].difference <= 1e-5
    assert checks["model.onnx"].difference <= 1e-4


@pytest.mark.parametrize("file", ["model.pt2", "model.onnx"])
def test_the_example_names_a_picture_as_scanlab_does(written, tmp_path, file):
    sample_photograph().crop((100, 0, 500, 300)).save(tmp_path / "picture.png")
    command = [sys.executable, "-I", "-B", "-c", BLOCKED, str(written[0] / "run.py"), "picture.png", file]
    environment = os.environ | {"PATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "outdated" not in done.stderr
    (expected,) = classify(trained_tiny_vim(), [tmp_path / "picture.png"])
    shown = [re.fullmatch(r" *([\d.]+)%  (.+)", line).groups() for line in done.stdout.splitlines()]
    assert [name for _, name in shown] == [name for name, _ in expected.classes]
    assert [float(share) for share, _ in shown] == pytest.approx(
        [100 * share for _, share in expected.classes], abs=0.051
    )


def test_the_profile_holds_what_is_frozen_into_the_package(written):
    folder, exported = written
    (problem,) = exported.decided
    assert (problem.batch, problem.dim, problem.length, problem.direction) == (BATCH, 64, 17, "bidirectional")
    (entry,) = json.loads((folder / "profile.json").read_text())["entries"]
    assert ScanProblem.parse(entry["problem"]) == problem
    assert entry["config"] == exported.decided[problem].config
    assert entry["source_hash"] == registry.get("native").source_hash
    kernels = sorted(path.name.partition("-")[0] for path in (folder / "kernels").iterdir())
    assert kernels == ["mixer", "native"]


def test_the_manifest_vouches_for_every_file(written):
    manifest = json.loads((written[0] / "manifest.json").read_text())
    files = {path.relative_to(written[0]).as_posix(): path for path in written[0].rglob("*") if path.is_file()}
    assert manifest["sha256"].keys() == files.keys() - {"manifest.json"}
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256(files[name].read_bytes()).hexdigest() == digest
    assert (manifest["model"], manifest["size"], manifest["batch"], manifest["classes"]) == ("tiny", 32, BATCH, 1000)
    for script in SCRIPTS:
        assert manifest["sha256"][script.name] == hashlib.sha256(script.read_bytes()).hexdigest()


def test_the_example_is_twenty_lines(written):
    assert len((written[0] / "run.py").read_text().splitlines()) <= 20


def test_a_graph_whose_logits_are_off_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setitem(bundle.TOLERANCES, "onnx", 1e-12)
    exported = export(trained_tiny_vim(), tmp_path / "made", ("onnx",), origin={})
    assert not exported.passed
    assert exported.checks[0].difference > 1e-12
    assert re.search(r"off by \d\.\de-0\d of the largest: at most 1e-12", exported.checks[0].reason)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_not_run_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "write_graph", lambda model, images, path, *_: path.write_bytes(b"no graph"))
    exported = export(trained_tiny_vim(), tmp_path / "made", ("onnx",), origin={})
    assert not exported.passed
    assert "does not run in a fresh process" in exported.checks[0].reason
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_kept(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something already"):
        export(trained_tiny_vim(), tmp_path, ("onnx",), origin={})
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_model_in_training_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"eval\(\)"):
        export(trained_tiny_vim().train(), tmp_path / "made", ("onnx",), origin={})
