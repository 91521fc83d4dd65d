"""The problems that are tuned: named suites, drawn, captured from a model on a photograph, or those of a script."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scanlab.contract.problem import ScanInputs, ScanProblem, make_inputs
from scanlab.errors import InputError
from scanlab.runtime.usage import Usage

SHIPPED = Path(__file__).with_name("suites.toml")
CAPTURED = "captured"
FIELDS = {"summary", "model", "image_size", "problems"}


@dataclass(frozen=True)
class Case:
    """One problem to tune, with the inputs to tune it on and where they came from."""

    problem: ScanProblem
    inputs: tuple[ScanInputs, ...]
    label: str


def read_suites(path: Path = SHIPPED) -> dict[str, dict[str, Any]]:
    """The suites in a TOML file by name; raises InputError where it is missing or not a file of suites."""
    try:
        suites = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the suites in {path}: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not TOML: {error}.") from error
    for name, suite in suites.items():
        if not isinstance(suite, dict) or not suite.keys() <= FIELDS or ("model" in suite) == ("problems" in suite):
            raise InputError(f"suite {name!r} in {path}: must be a table of a summary, and a `model` or `problems`.")
    return suites


def load_suite(name: str, image: Path | None = None) -> tuple[Case, ...]:
    """The cases of the suite called `name`, or "FILE.toml:NAME" for a suite in a file of yours.

    A model's suite is captured on `image`, or on the photograph that ships with scikit-learn.
    """
    file, separator, own = name.rpartition(":")
    suites = read_suites(Path(file)) if separator else read_suites()
    if own not in suites:
        known = ", ".join(suites)
        raise InputError(f"no suite is called {own!r}: there are {known}; one in a file of yours is FILE.toml:NAME.")
    suite = suites[own]
    if "model" in suite:
        return (_capture(own, suite, image),)
    if image is not None:
        raise InputError(f"suite {own!r} draws its inputs and takes no image; leave the image out.")
    return tuple(drawn_case(ScanProblem.parse(text)) for text in suite["problems"])


def drawn_case(problem: ScanProblem, seed: int = 0) -> Case:
    """`problem` with inputs drawn by `make_inputs`."""
    return Case(problem, make_inputs(problem, seed), f"drawn, seed {seed}")


def recorded_suite(script: str, usage: Mapping[ScanProblem, Usage]) -> str:
    """The text of a file with one suite, called CAPTURED: the problems that `script` has, in the order of `usage`."""
    total_s = sum(each.seconds for each in usage.values())
    lines = [
        f'    "{problem.key}",  # {each.calls} calls, {each.seconds / total_s:.1%} of the time in forward scans'
        for problem, each in usage.items()
    ]
    calls = sum(each.calls for each in usage.values())
    summary = _toml_string(f"{script}: {calls} scans that took {total_s:.3g} s forward")
    return "\n".join((f"[{CAPTURED}]", f"summary = {summary}", "problems = [", *lines, "]", ""))


def _toml_string(text: str) -> str:
    """Return `text` as a string of TOML, which knows no surrogates; undecodable bytes of a file name are escaped."""
    encodable = text.encode("utf-8", "backslashreplace").decode()
    return json.dumps(encodable, ensure_ascii=False).replace("\x7f", "\\u007f")


def _capture(name: str, suite: Mapping[str, Any], image: Path | None) -> Case:
    from scanlab.models import capture, images, vision_mamba
    from scanlab.runtime.ops import in_torch

    size = suite.get("image_size")
    build = getattr(vision_mamba, str(suite["model"]), None)
    if build is None or not isinstance(size, int):
        raise InputError(
            f"suite {name!r}: model must name a Vim such as vim_tiny, and image_size be a number of pixels."
        )
    photograph = images.sample_photograph() if image is None else images.open_image(image)
    model = capture.trained_like_(build(img_size=size, scan="reference")).eval()
    pixels = images.prepare(photograph, size)[None]
    layer = len(model.layers) // 2
    with in_torch():
        problem, inputs = capture.capture_scan_inputs(model, pixels, layer)
    where = "scikit-learn's china.jpg" if image is None else str(image.name)
    return Case(problem, inputs, f"captured from {suite['model']} at {size} px on {where}, layer {layer}")
