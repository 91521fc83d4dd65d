"""Tables of trials: pandas frames of plain numbers, and the same as text with units, Markdown and CSV."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

import pandas as pd
from markupsafe import Markup, escape

from scanlab.bench.records import MEASURED, Trial, spelled_state
from scanlab.contract import registry
from scanlab.contract.space import Config
from scanlab.report.formatting import between, memory, milliseconds, per_second, scientific, three_digits, times
from scanlab.report.select import Contest, best, contest_of, contests, is_known, placings, speedup_interval

UNKNOWN = "?"
NUMBERS = (
    *("median_ms", "quartile1_ms", "quartile3_ms", "speedup", "speedup_low", "speedup_high"),
    *("multiply_adds_per_s", "error", "peak_bytes", "build_ms", "first_call_ms"),
)


def speedup_table(trials: Iterable[Trial], deployed: Mapping[Contest, str] | None = None) -> pd.DataFrame:
    """Return a row for each contest and backend, the fastest first; those without numbers come last, with the reason.

    Args:
        trials: Trials that count, see `select`.
        deployed: Label of the deployed configuration of each contest that has one.

    Returns:
        Columns problem, inputs, backend, config, deployed, numbers_from (phase), reference, NUMBERS, state, reason,
        tried and failed (configurations), source_hash. `speedup_low` and `_high` are the 95 % interval of the paired
        ratio to the reference, empty if there are too few blocks for one; `error` is the largest of any tensor
        against float64, as a share of that tensor's largest value.
    """
    rows = []
    for contest, members in contests(trials).items():
        for placing in placings(members, (deployed or {}).get(contest)):
            trial = placing.trial
            outcome = {"state": trial.state, "reason": trial.reason or "", "tried": placing.tried}
            outcome |= {"failed": placing.failed, "source_hash": trial.source_hash}
            chosen = {"deployed": placing.deployed, "numbers_from": trial.phase}
            rows.append(_subject(trial) | chosen | _numbers(trial) | outcome)
    return pd.DataFrame(rows)


def error_table(trials: Iterable[Trial]) -> pd.DataFrame:
    """Return the largest error of each tensor over all verified configurations of a backend.

    Returns:
        Columns problem, inputs, backend, config (with the largest error), tensor, configurations (their number),
        worst_error (as a share of the tensor's largest value), tolerance, passed.
    """
    verified: dict[tuple[Contest, str, str], list[Trial]] = {}
    for trial in trials:
        for tensor in trial.verdict.errors if trial.verdict else ():
            verified.setdefault((contest_of(trial), trial.backend, tensor), []).append(trial)
    rows = []
    for (_, _, tensor), members in sorted(verified.items(), key=lambda item: (item[0][0].problem.key, *item[0][1:])):
        verdicts = [trial.verdict for trial in members if trial.verdict is not None]
        errors = [verdict.errors[tensor] for verdict in verdicts]
        worst = errors.index(max(errors))
        rows.append(
            _subject(members[worst])
            | {"tensor": tensor, "configurations": len({trial.identity for trial in members})}
            | {"worst_error": errors[worst], "tolerance": verdicts[worst].tolerances[tensor]}
            | {"passed": errors[worst] <= verdicts[worst].tolerances[tensor]}
        )
    return pd.DataFrame(rows)


def trial_table(trials: Iterable[Trial]) -> pd.DataFrame:
    """Return every trial in a row, in the order given: as in `speedup_table`, with its phase, samples and blocks."""
    rows = []
    for trial in trials:
        started = datetime.fromtimestamp(trial.started_at, UTC).isoformat(timespec="seconds")
        blocks = trial.measurement.blocks if trial.measurement else ()
        rows.append(
            {"id": trial.id, "started_at": started, "phase": trial.phase}
            | _subject(trial)
            | {"state": trial.state}
            | _numbers(trial)
            | {"samples": sum(len(block.candidate_ns) for block in blocks), "blocks": len(blocks)}
            | {"disturbed_blocks": trial.measurement.disturbed_blocks if trial.measurement else 0}
            | {"duration_s": trial.duration_s, "seed": trial.seed, "reason": trial.reason or ""}
            | {"source_hash": trial.source_hash, "machine": trial.machine.silicon_id}
        )
    return pd.DataFrame(rows)


def length_table(trials: Iterable[Trial]) -> pd.DataFrame:
    """Return the time of one call as text: a row for each backend that was measured, a column for each length."""
    by_length: dict[str, dict[int, list[Trial]]] = {}
    for trial in trials:
        if trial.measurement is not None:
            by_length.setdefault(trial.backend, {}).setdefault(trial.problem.swept_size, []).append(trial)
    lengths = sorted({length for found in by_length.values() for length in found})
    rows = []
    for backend, found in by_length.items():
        fastest = {length: best(members) for length, members in found.items()}
        cells = {
            length: milliseconds(trial.measurement.median_ms) if is_known(trial) and trial.measurement else UNKNOWN
            for length, trial in fastest.items()
        }
        rows.append({"backend": backend} | {str(length): cells.get(length, "") for length in lengths})
    return pd.DataFrame(rows)


def failure_table(trials: Iterable[Trial]) -> pd.DataFrame:
    """Return the configurations without numbers, as text: those of one backend with equal failures are one row."""
    equal: dict[tuple[str, str, str], dict[str, None]] = {}
    for trial in trials:
        if trial.measurement is None:
            equal.setdefault((trial.backend, trial.state, trial.reason or ""), {})[config_text(trial.config)] = None
    return pd.DataFrame(
        {"backend": backend, "state": state, "reason": reason, "configurations": "; ".join(configs)}
        for (backend, state, reason), configs in sorted(equal.items())
    )


def readable_speedups(frame: pd.DataFrame) -> pd.DataFrame:
    """Return rows of a `speedup_table` that belong to one contest, as text with units."""
    return pd.DataFrame(
        {
            "backend": f"{row.backend} (deployed)" if row.deployed else row.backend,
            "configuration, or why not": _settled(row.config, row.state, row.reason),
            "median": _known(milliseconds(row.median_ms), row.state),
            "quartiles": _known(between(row.quartile1_ms, row.quartile3_ms, milliseconds), row.state),
            "speed-up": _known(times(row.speedup), row.state),
            "95 % interval": _known(between(row.speedup_low, row.speedup_high, three_digits), row.state),
            "multiply-adds": _known(per_second(row.multiply_adds_per_s), row.state),
            "error": scientific(row.error),
            "memory": memory(row.peak_bytes),
            "build": milliseconds(row.build_ms),
            "from": row.numbers_from if row.state in MEASURED else "",
        }
        for row in frame.itertuples()
    )


def readable_errors(frame: pd.DataFrame) -> pd.DataFrame:
    """Return rows of an `error_table` that belong to one contest, as text."""
    return pd.DataFrame(
        {
            "backend": row.backend,
            "tensor": row.tensor,
            "configurations": str(row.configurations),
            "worst error": scientific(row.worst_error),
            "allowed": scientific(row.tolerance),
            "used up": f"{row.worst_error / row.tolerance:.1%}" if row.passed else "exceeded",
            "worst configuration": row.config,
            "verdict": "passed" if row.passed else "WRONG",
        }
        for row in frame.itertuples()
    )


def config_text(config: Config) -> str:
    """Return a configuration as a person would write it: "chunk=32 threads=2"."""
    return " ".join(f"{name}={value}" for name, value in config.items())


def csv(frame: pd.DataFrame) -> str:
    """Return `frame` as CSV; six significant digits, which is more than a timing has."""
    text: str = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    return text


def markdown(frame: pd.DataFrame) -> str:
    """Return a frame of text as a Markdown table."""
    text: str = frame.map(_markdown_cell).to_markdown(index=False, disable_numparse=True)
    return text


def _markdown_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _known(text: str, state: str) -> str:
    """Return `text`, or "?" where a trial was measured in too few clean rounds for it."""
    return text or (UNKNOWN if state in MEASURED else "")


def _settled(config: str, state: str, reason: str) -> str:
    """Return the configuration, or the state of a trial that did not succeed; a rejection has no configuration."""
    if state == "ok":
        return config
    return ", ".join(filter(None, ("" if state == "rejected" else config, f"{spelled_state(state)}: {reason}")))


def _subject(trial: Trial) -> dict[str, str]:
    contest = {"problem": trial.problem.key, "inputs": trial.inputs_label}
    return contest | {"backend": trial.backend, "config": config_text(trial.config)}


def _numbers(trial: Trial) -> dict[str, float | str]:
    error = trial.verdict.worst if trial.verdict else math.nan
    measured = trial.measurement
    if measured is None:
        return {"reference": "", **dict.fromkeys(NUMBERS, math.nan), "error": error}
    first, middle, third = measured.quartiles_ms
    low, high = speedup_interval(measured)
    values = (
        first,
        third,
        measured.speedup,
        low,
        high,
        registry.op(trial.problem.op).work(trial.problem).multiply_adds / middle * 1e3,
        error,
    )
    peak = math.nan if measured.peak_bytes is None else measured.peak_bytes
    if not is_known(trial):
        middle, values = math.nan, (math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, error)
    numbers = dict(zip(NUMBERS, (middle, *values, peak, measured.build_ms, measured.first_call_ms), strict=True))
    return {"reference": trial.reference_label, **numbers}


def numeric(frame: pd.DataFrame) -> list[bool]:
    """Return for each column of text whether it holds numbers, and is set to the right."""
    return [all(not cell or cell[0].isdigit() for cell in frame[name]) for name in frame.columns]


def breakable(text: str) -> Markup:
    """Return `text` for a narrow cell, where lines may end after a comma."""
    return escape(text).replace(",", Markup(",<wbr>"))
