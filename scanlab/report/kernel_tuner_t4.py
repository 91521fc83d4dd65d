"""Write results in the T4 format, which Kernel Tuner and other auto-tuners read.

Source of the format: KernelTuner/kernel_tuner@96a6abc, kernel_tuner/schema/T4/1.0.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scanlab.bench.records import State, Trial
from scanlab.bench.samples import Measurement
from scanlab.contract.machine import Machine
from scanlab.errors import ResultsError
from scanlab.report.select import contests, select, slugs

SCHEMA_VERSION = "1.0.0"
# The format has one word for complete measurements and for those that were pruned: "phase" and
# "state" among the measurements tell them apart.
INVALIDITY: Mapping[State, str] = {
    "ok": "correct",
    "pruned": "correct",
    "wrong": "correctness",
    "crashed": "runtime",
    "rejected": "constraints",
    "disturbed": "correct",
}
OBJECTIVE = "time"


def write_t4(trials: Iterable[Trial], machine: Machine, folder: Path) -> list[Path]:
    """Write the trials of `machine` that count to `folder`, a T4 results file for each contest, and the metadata.

    A configuration holds the backend beside its tunables, which makes one search space of all backends.

    Returns:
        The paths of the files.

    Raises:
        ResultsError: If it cannot be written.
    """
    found = contests(trial for trial in select(trials, machine).trials if trial.phase != "lengths")
    names = slugs(found)
    contents = {f"{names[contest]}.t4-results.json": results(own) for contest, own in found.items()}
    contents["t4-metadata.json"] = metadata(machine)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8", newline="\n")
    except OSError as error:
        raise ResultsError(f"{folder}: cannot write T4 results: {error.strerror}. Name another folder.") from error
    return [folder / name for name in contents]


def results(trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the T4 results of `trials`, as JSON values; times are in milliseconds."""
    return {
        "schema_version": SCHEMA_VERSION,
        "metadata": {"timeunit": "milliseconds"},
        "results": [_result(trial) for trial in trials],
    }


def metadata(machine: Machine) -> dict[str, Any]:
    """Return the T4 metadata of `machine`, as JSON values."""
    software = machine.software
    return {
        "schema_version": SCHEMA_VERSION,
        "metadata": {
            "hardware": {"hardware_description": [asdict(machine.silicon)], "operating_system": software.system},
            "environment": {
                "device_query": {"compiler": software.compiler, "python": software.python},
                "requirements": [f"scanlab=={software.scanlab}", f"torch=={software.torch}"],
            },
        },
    }


def _result(trial: Trial) -> dict[str, Any]:
    measured = trial.measurement
    passed = trial.verdict is not None and trial.verdict.passed
    return {
        "timestamp": datetime.fromtimestamp(trial.started_at, UTC).isoformat(),
        "configuration": {"backend": trial.backend, **trial.config},
        "objectives": [OBJECTIVE],
        "times": {"runtimes": []} if measured is None else _times(measured),
        "invalidity": INVALIDITY[trial.state],
        "correctness": 1.0 if passed else 0.0,
        "measurements": [{"name": name, "value": value, "unit": unit} for name, value, unit in _measurements(trial)],
    }


def _times(measured: Measurement) -> dict[str, Any]:
    return {
        "compilation_time": measured.build_ms + measured.first_call_ms,
        "runtimes": [sample / 1e6 for block in measured.clean for sample in block.candidate_ns],
    }


def _measurements(trial: Trial) -> list[tuple[str, float | str, str]]:
    about: list[tuple[str, float | str, str]] = [("phase", trial.phase, ""), ("state", trial.state, "")]
    if trial.reason is not None:
        about.append(("reason", trial.reason, ""))
    if trial.verdict is not None and trial.verdict.errors:
        about.append(("error", trial.verdict.worst, "share of the largest value"))
    measured = trial.measurement
    if measured is None:
        return about
    about += [(OBJECTIVE, measured.median_ms, "ms"), ("speedup", measured.speedup, f"times {trial.reference_label}")]
    if measured.peak_bytes is not None:
        about.append(("peak_memory", float(measured.peak_bytes), "bytes"))
    return about
