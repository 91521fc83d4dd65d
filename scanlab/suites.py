"""Suites of problems to tune: drawn, captured from a model on a photograph, or recorded from a script."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scanlab.contract import registry
from scanlab.contract.base import Problem
from scanlab.contract.cpu import torch_threads
from scanlab.contract.files import read_text
from scanlab.contract.machine import this_machine
from scanlab.contract.op import Inputs
from scanlab.contract.problem import ScanProblem
from scanlab.errors import InputError, UnavailableError, did_you_mean
from scanlab.runtime.usage import Usage

SHIPPED = Path(__file__).with_name("suites.toml")
CAPTURED = "captured"
# Tuning holds two sets of inputs with their outputs in float64, in this process and in its worker.
MEMORY_FACTOR = 8
MAX_IMAGE_SIZE = 4096
FIELDS = {"summary", "model", "image_size", "op", "problems"}


@dataclass(frozen=True)
class Case:
    """A problem to tune, the inputs to tune it on, and where they came from."""

    problem: Problem
    inputs: Inputs
    label: str


def read_suites(path: Path = SHIPPED) -> dict[str, dict[str, Any]]:
    """Return the suites of a TOML file by name.

    Raises:
        InputError: The file cannot be read, is not TOML, or holds something else than suites.
    """
    try:
        suites = tomllib.loads(read_text(path, "utf-8-sig"))  # as some editors write it
    except OSError as error:
        raise InputError(f"cannot read the suites in {path}: {error}.") from error
    except ValueError as error:  # beside faults of syntax: bytes that are not text, and numbers of too many digits
        raise InputError(f"{path} is not TOML: {error}.") from error
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply: a suite holds a list of texts.") from error
    for name, suite in suites.items():
        fault = _fault_of(suite)
        if fault is not None:
            raise InputError(f"suite {name!r} in {path}: {fault}.")
    return suites


def _fault_of(suite: object) -> str | None:
    """Return the fault of a suite as read from TOML, or None."""
    if not isinstance(suite, dict) or not suite.keys() <= FIELDS or ("model" in suite) == ("problems" in suite):
        return "must be a table of a summary, and a `model` or `problems`"
    for name in ("summary", "op"):
        if not isinstance(suite.get(name, ""), str):
            return f"{name} must be a text"
    if "model" in suite:
        return None if isinstance(suite["model"], str) else "model must be the name of a Vim, such as 'vim_tiny'"
    problems = suite["problems"]
    if not isinstance(problems, list) or not problems or not all(isinstance(text, str) for text in problems):
        return "problems must be a list of at least one text such as 'batch=1,dim=384,length=197'"
    return None


def load_suite(name: str, image: Path | None = None) -> tuple[Case, ...]:
    """Return the cases of a suite.

    Args:
        name: A shipped suite, or "FILE.toml:NAME" for one in a file of yours.
        image: The photograph that a model's suite is captured on; the one that scikit-learn ships by default.
    """
    own, suite = _suite(name)
    if "model" in suite:
        return (_capture(own, suite, image),)
    return tuple(drawn_case(each) for each in _listed(own, suite, image))


def suite_problems(name: str, image: Path | None = None) -> tuple[Problem, ...]:
    """Return the problems of a suite, as `load_suite` takes it; only a model that has to run to tell makes inputs."""
    own, suite = _suite(name)
    if "model" in suite:
        return (_capture(own, suite, image).problem,)
    return _listed(own, suite, image)


def _suite(name: str) -> tuple[str, dict[str, Any]]:
    """Return the name of a suite in its file, and its content."""
    file, separator, own = name.rpartition(":")
    suites = read_suites(Path(file)) if separator else read_suites()
    if own not in suites:
        known = ", ".join(suites)
        raise InputError(
            f"no suite is called {own!r}: there are {known}; one in a file of yours is FILE.toml:NAME."
            f"{did_you_mean(own, suites)}"
        )
    return own, suites[own]


def _listed(name: str, suite: Mapping[str, Any], image: Path | None) -> tuple[Problem, ...]:
    """Return the problems that a suite lists."""
    if image is not None:
        raise InputError(f"suite {name!r} draws its inputs and takes no image; leave the image out.")
    op = suite.get("op", registry.DEFAULT_OP)
    problems = tuple(registry.parse_problem(text, op) for text in suite["problems"])
    for problem, count in Counter(problems).items():
        if count > 1:
            raise InputError(f"suite {name!r} names {problem.key} {count} times: name it once.")
    return problems


def drawn_case(problem: Problem, seed: int = 0) -> Case:
    """Return `problem` with inputs drawn by its op.

    Raises:
        InputError: The problem does not fit into memory, or torch knows no such device.
        UnavailableError: The device is not there.
    """
    if problem.device not in ("cpu", "cuda"):
        raise InputError(f"device={problem.device}: must be cpu or cuda.")
    try:
        torch.empty(0, device=problem.device)
    except (RuntimeError, AssertionError) as error:
        raise UnavailableError(f"device={problem.device}: {str(error).splitlines()[0]}. Use device=cpu.") from error
    op = registry.op(problem.op)
    needed_bytes, memory_bytes = op.work(problem).traffic_bytes, this_machine().silicon.memory_bytes
    if memory_bytes and MEMORY_FACTOR * needed_bytes > memory_bytes:
        raise InputError(
            f"{problem.key}: its tensors take {needed_bytes / 2**30:.3g} GiB, and tuning them {MEMORY_FACTOR} times as"
            f" much; this machine has {memory_bytes / 2**30:.3g} GiB. Make the problem smaller."
        )
    return Case(problem, op.make_inputs(problem, seed), f"drawn, seed {seed}")


def recorded_suite(script: str, usage: Mapping[ScanProblem, Usage]) -> str:
    """Return the text of a file with one suite, CAPTURED: the problems of `script`, in the order of `usage`."""
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
    build = vision_mamba.RELEASED.get(suite["model"])
    if build is None or not isinstance(size, int) or isinstance(size, bool) or not 16 <= size <= MAX_IMAGE_SIZE:
        raise InputError(
            f"suite {name!r}: model must be one of {', '.join(vision_mamba.RELEASED)}, and image_size 16 to"
            f" {MAX_IMAGE_SIZE} pixels."
        )
    photograph = images.sample_photograph() if image is None else images.open_image(image)
    model = build(img_size=size, scan="chunked")
    layer = len(model.layers) // 2
    del model.layers[layer + 1 :]  # they do not run
    capture.trained_like_(model).eval()
    pixels = images.prepare(photograph, size)[None]
    with in_torch(), torch_threads(1):  # layers this small gain nothing from more, and wait for them beside others
        problem, inputs = capture.capture_scan_inputs(model, pixels, layer)
    where = "scikit-learn's china.jpg" if image is None else str(image.name)
    return Case(
        problem, inputs, f"captured from {suite['model']} with synthetic weights at {size} px on {where}, layer {layer}"
    )
