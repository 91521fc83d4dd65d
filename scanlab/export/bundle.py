"""Export of a model to a folder that runs without scanlab, checked by comparing its logits in a fresh process.

model.pt2, kernels/  the package of AOTInductor and the libraries of the ops that it calls
profile.json         the configuration of the native scan that is frozen into it, and on what basis
model.onnx           the graph for ONNX Runtime, of standard operators
model-linear-attention.onnx   the graph for ONNX Runtime >= 1.32, with its LinearAttention
run.py               classifies a picture, in 20 lines on loading.py; classes.txt holds the class names
manifest.json        the origin of the model, the software that wrote it, and the errors of its logits
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scanlab.contract import registry
from scanlab.contract.machine import this_machine
from scanlab.contract.problem import ScanProblem
from scanlab.errors import InputError
from scanlab.export.aoti import FrozenScan, write_package
from scanlab.export.onnx_graph import Operator, write_graph
from scanlab.models.classify import class_names
from scanlab.models.vision_mamba import VisionMamba
from scanlab.runtime.decisions import Decision
from scanlab.runtime.profile import Profile, ProfileEntry, load_profile

Format = Literal["aoti", "onnx", "onnx-linear-attention"]
FILES: Mapping[Format, str] = {
    "aoti": "model.pt2",
    "onnx": "model.onnx",
    "onnx-linear-attention": "model-linear-attention.onnx",
}
OPERATORS: Mapping[Format, Operator] = {"onnx": "Scan", "onnx-linear-attention": "LinearAttention"}
# Of the largest logit. A package computes with the same scan and rounds its matrix products elsewhere; a graph
# computes the scan anew.
TOLERANCES: Mapping[Format, float] = {"aoti": 1e-5, "onnx": 1e-4, "onnx-linear-attention": 1e-4}
SCRIPTS = tuple(Path(__file__).with_name(name) for name in ("run.py", "loading.py"))
# Run in the fresh process, where neither scanlab nor a compiler can be found.
FRESH = """
import pathlib, sys
sys.modules["scanlab"] = None
import numpy as np
model, images, logits = map(pathlib.Path, sys.argv[1:])
sys.path.insert(0, str(model.parent))
from loading import load
np.save(logits, load(model)(np.load(images)))
"""


@dataclass(frozen=True)
class Check:
    """Comparison of an exported model's logits in a fresh process with those of the model itself.

    Attributes:
        difference: The largest absolute difference, as a share of the largest logit; None where the process failed.
        reason: Why the check failed, or None.
    """

    file: str
    tolerance: float
    difference: float | None = None
    reason: str | None = None

    @property
    def passed(self) -> bool:
        """True where the logits agree with those of the model, within the tolerance."""
        return self.reason is None


@dataclass(frozen=True)
class Exported:
    """Result of `export`: the checks of the exported models, and the choices that are frozen into a package."""

    checks: tuple[Check, ...]
    decided: Mapping[ScanProblem, Decision]

    @property
    def passed(self) -> bool:
        """True where every check passed, so that the folder was written."""
        return all(check.passed for check in self.checks)


def export(
    model: VisionMamba,
    folder: Path,
    formats: Sequence[Format],
    *,
    batch: int = 1,
    origin: Mapping[str, str],
    say: Callable[[str], None] = lambda step: None,
) -> Exported:
    """Write `model`, for `batch` pictures at once, to a folder; write nothing where a check fails.

    A package follows this machine's profile.

    Args:
        model: The model, in evaluation mode.
        folder: The folder to write; new, or empty.
        formats: The formats to write.
        batch: Pictures at once.
        origin: Facts about the model's name and weights, for the manifest.
        say: Called with a line of text at each step.

    Raises:
        InputError: The model is in training, or the folder is not empty or cannot be written.
        UnavailableError: A format cannot be written on this machine.
    """
    if model.training:
        raise InputError("the model is in training: call its eval() first, for an export has no dropout.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds something already: remove it, or name another folder.")
    height, width = model.patch_embed.img_size
    images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(images)
    scan = FrozenScan(load_profile())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
            unfinished = Path(place) / folder.name
            unfinished.mkdir()
            for script in SCRIPTS:
                shutil.copy(script, unfinished)
            (unfinished / "classes.txt").write_text("\n".join(class_names(logits.shape[1])) + "\n")
            for each in formats:
                say(f"write {FILES[each]}")
                if each == "aoti":
                    _write_aoti(model, images, scan, unfinished)
                else:
                    write_graph(model, images, unfinished / FILES[each], OPERATORS[each])
            say("check in a fresh process")
            checks = tuple(_check(unfinished / FILES[each], images, logits, TOLERANCES[each]) for each in formats)
            exported = Exported(checks, scan.decided)
            if exported.passed:
                sizes = {"size": height, "batch": batch, "classes": logits.shape[1]}
                facts = {"scanlab": version("scanlab"), "machine": this_machine().describe(), **origin, **sizes}
                _write_manifest(unfinished, facts, checks)
                if folder.exists():
                    folder.rmdir()  # it is empty, and Windows renames onto nothing that is there
                unfinished.rename(folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error}.") from error
    return exported


def _write_aoti(model: VisionMamba, images: Tensor, scan: FrozenScan, folder: Path) -> None:
    libraries = write_package(model, images, scan, folder / FILES["aoti"])
    (folder / "kernels").mkdir()
    for library in libraries:
        shutil.copy(library, folder / "kernels")
    profile = Profile.empty()
    for problem, decision in scan.decided.items():
        evidence = {"basis": decision.basis, "reason": decision.reason}
        source_hash = registry.get(decision.backend).source_hash
        profile = profile.with_entry(ProfileEntry(problem, decision.backend, source_hash, decision.config, evidence))
    profile.save(folder / "profile.json")


def _check(file: Path, images: Tensor, logits: Tensor, tolerance: float) -> Check:
    """Compare the logits of the exported model in `file`, run in a fresh process without a compiler, with `logits`."""
    with tempfile.TemporaryDirectory() as place:
        given, found = Path(place) / "images.npy", Path(place) / "logits.npy"
        np.save(given, images.numpy())
        command = [sys.executable, "-I", "-B", "-c", FRESH, str(file), str(given), str(found)]
        environment = {name: value for name, value in os.environ.items() if name != "CXX"} | {"PATH": place}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            return Check(file.name, tolerance, reason=f"it does not run in a fresh process:\n{done.stderr[-2000:]}")
        results = torch.from_numpy(np.load(found))
    difference = float((results - logits).abs().max() / logits.abs().max())
    if difference <= tolerance:
        return Check(file.name, tolerance, difference)
    off = f"its logits are off by {difference:.1e} of the largest: at most {tolerance:.0e} is rounding"
    return Check(file.name, tolerance, difference, off)


def _write_manifest(folder: Path, facts: Mapping[str, object], checks: Sequence[Check]) -> None:
    """Write the manifest, with the SHA-256 of every file in the folder but the manifest itself."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    models = {check.file: {"dtype": "float32", **asdict(check)} for check in checks}
    content = {**facts, "models": models, "sha256": hashes}
    (folder / "manifest.json").write_text(json.dumps(content, indent=2) + "\n")
