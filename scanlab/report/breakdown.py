"""Breakdown of a model's forward pass by its ops, before and after tuning, kept as JSON beside the records."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from scanlab.bench.records import check_field_types
from scanlab.contract.files import read_text, write_atomically
from scanlab.contract.machine import Machine
from scanlab.errors import UNREADABLE, ResultsError
from scanlab.report.formatting import milliseconds, percent, scientific
from scanlab.report.style import FAINT, INK, SIDE_BY_SIDE, WIDTH_INCHES, Look, applied, over, sheet

FOLDER = "models"
PRODUCTS = "linear"
OTHERS = Look("#BFC5CC", "o", "")
# Parts of a bar that take less than this share of it have no label.
LABELLED_SHARE = 0.07


@dataclass(frozen=True)
class OpTime:
    """Time of all calls for one op problem in one forward pass; `attainable_ms` wastes nothing.

    The time before or after is 0 if the dtype that the model then had does not pose the problem.
    """

    op: str
    problem: str
    calls: int
    before_ms: float
    after_ms: float
    attainable_ms: float


@dataclass(frozen=True)
class DtypeAccuracy:
    """Accuracy of the model in a dtype, compared with float64, and its time where it was compared.

    `refusal` says why it took no part in the comparison that chose; None if it did.
    """

    dtype: str
    logit_error: float
    agreement: float
    digits_agreement: float | None
    median_ms: float | None
    refusal: str | None = None


@dataclass(frozen=True)
class ModelBreakdown:
    """Time of a model's forward pass and of its ops, served by the defaults and by the tuned choice.

    Attributes:
        problem: Key of the model's problem.
        before_ms, after_ms: Medians of the whole model.
        why: The sentence that names the choice.
        products_ms: The matrix products of the tuned pass alone, as torch computes them; None if unknown.
    """

    problem: str
    machine: Machine
    before_ms: float
    after_ms: float
    why: str
    ops: tuple[OpTime, ...]
    dtypes: tuple[DtypeAccuracy, ...]
    products_ms: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return this breakdown as JSON values."""
        return asdict(self) | {"machine": self.machine.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ModelBreakdown:
        """Return the breakdown that `to_json` wrote; raises TypeError, ValueError or LookupError for anything else."""
        ops = tuple(OpTime(**each) for each in values["ops"])
        dtypes = tuple(DtypeAccuracy(**each) for each in values["dtypes"])
        found = cls(**{**values, "machine": Machine.from_json(values["machine"]), "ops": ops, "dtypes": dtypes})
        check_field_types(found)
        products = () if found.products_ms is None else (found.products_ms,)
        times = (found.before_ms, found.after_ms, *products, *(each.after_ms or each.before_ms for each in ops))
        if not all(0.0 < time < math.inf for time in times):
            raise ValueError("a time is not positive")
        return found


def save_breakdown(breakdown: ModelBreakdown, results: Path) -> Path:
    """Write `breakdown` into the results folder, in a file for its problem and machine.

    Raises:
        ResultsError: If it cannot be written.
    """
    slug = "".join(letter if letter.isalnum() else "-" for letter in breakdown.problem)
    path = results / FOLDER / f"{slug}-{breakdown.machine.silicon_id[:8]}.json"
    try:
        write_atomically(path, json.dumps(breakdown.to_json(), indent=1) + "\n")
    except OSError as error:
        raise ResultsError(f"{path}: cannot write the breakdown: {error.strerror}. Name another folder.") from error
    return path


def load_breakdowns(results: Path, machine: Machine) -> tuple[list[ModelBreakdown], list[str]]:
    """Return the breakdowns of `machine` in a results folder, and a notice for every file that cannot be read."""
    found, notices = [], []
    for path in sorted((results / FOLDER).glob("*.json")):
        try:
            each = ModelBreakdown.from_json(json.loads(read_text(path)))
        except (OSError, *UNREADABLE) as error:
            notices.append(f"{path}: skipped, because it is not a breakdown: {type(error).__name__}: {error}")
            continue
        if each.machine.silicon_id == machine.silicon_id:
            found.append(each)
    return found, notices


def op_table(breakdown: ModelBreakdown) -> pd.DataFrame:
    """Return a row of text for each op problem, the one that takes longest first."""
    rows = [
        {
            "op": each.op,
            "problem": each.problem,
            "calls": str(each.calls),
            "before": milliseconds(each.before_ms) if each.before_ms else "",
            "after": milliseconds(each.after_ms) if each.after_ms else "",
            "attainable": milliseconds(each.attainable_ms),
            "share of attainable": percent(each.attainable_ms / (each.after_ms or each.before_ms)),
        }
        for each in breakdown.ops
    ]
    return pd.DataFrame(rows)


def dtype_table(breakdown: ModelBreakdown) -> pd.DataFrame:
    """Return a row of text for each dtype: its time, and its cost in accuracy."""
    rows = [
        {
            "dtype": each.dtype,
            "time": "?" if each.median_ms is None else milliseconds(each.median_ms),
            "largest error of a logit": scientific(each.logit_error),
            "same first class": percent(each.agreement),
            "same digit": "" if each.digits_agreement is None else percent(each.digits_agreement),
            "left out": each.refusal or "",
        }
        for each in breakdown.dtypes
    ]
    return pd.DataFrame(rows)


@applied()
def breakdown_bars(breakdown: ModelBreakdown, caption: str) -> Figure:
    """Draw the forward pass as stacked bars of its ops: by the defaults, by the tuned choice, and the attainable time.

    A bar of its own has the matrix products alone, as torch computes them. What is not an op of scanlab, Python among
    it, is the rest of a whole model's time.
    """
    own = [] if breakdown.products_ms is None else [PRODUCTS]
    names = list(dict.fromkeys([*(each.op for each in breakdown.ops), *own]))
    looks = dict(zip(names, SIDE_BY_SIDE * 2, strict=False))
    bars = {
        "defaults": (breakdown.before_ms, _by_op(breakdown.ops, "before_ms")),
        "tuned": (breakdown.after_ms, _by_op(breakdown.ops, "after_ms")),
        "attainable": (None, _by_op([op for op in breakdown.ops if op.after_ms], "attainable_ms")),
    }
    if breakdown.products_ms is not None:
        bars["products by torch"] = (None, {PRODUCTS: breakdown.products_ms})
    subtitle = f"{breakdown.problem}. One forward pass; attainable: the limit of arithmetic and memory."
    made = sheet(WIDTH_INCHES, 2.8, "Where the time goes", subtitle, caption)
    (axes,) = made.axes
    longest = max(max(whole_ms or 0.0, sum(parts.values())) for whole_ms, parts in bars.values())
    for row, (whole_ms, parts) in enumerate(bars.values()):
        left = 0.0
        for name, value in parts.items():
            _part(axes, row, left, value, looks[name], name, longest)
            left += value
        if whole_ms is not None and whole_ms > left:
            _part(axes, row, left, whole_ms - left, OTHERS, "other", longest)
            left = whole_ms
        axes.text(left + 0.01 * longest, row, milliseconds(left), va="center", size=8.5)
    axes.set_yticks(range(len(bars)), list(bars))
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0.0, 1.12 * longest)
    axes.set_xlabel("milliseconds")
    axes.tick_params(left=False)
    handles = [Patch(facecolor=look.colour, edgecolor=INK, lw=0.6) for look in (*looks.values(), OTHERS)]
    axes.legend(
        handles,
        [*looks, "other"],
        ncols=min(3, len(looks) + 1),
        frameon=False,
        labelcolor=INK,
        fontsize=8.0,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
    )
    axes.grid(axis="x", color=FAINT, alpha=0.3)
    return made.figure


def _part(axes: Any, row: int, left: float, value: float, look: Look, name: str, longest: float) -> None:
    axes.barh(row, value, 0.62, left, color=look.colour, edgecolor=INK, lw=0.6)
    if value > LABELLED_SHARE * longest:
        axes.text(left + value / 2, row, f"{value:.3g}", ha="center", va="center", size=8.0, color=over(look.colour))


def _by_op(ops: Sequence[OpTime], attribute: str) -> dict[str, float]:
    sums: dict[str, float] = {}
    for each in ops:
        sums[each.op] = sums.get(each.op, 0.0) + getattr(each, attribute)
    return sums
