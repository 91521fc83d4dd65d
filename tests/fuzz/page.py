"""The page of a campaign: how many calls of each kind were made, on which machine, and what was wrong."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from fuzz.generators import GENERATORS
from scanlab.contract.machine import this_machine

SANITIZED = "C++ kernels and bindings under AddressSanitizer and UndefinedBehaviorSanitizer"
LEGEND = (
    "Valid calls must give the right values and gradients. So must edge calls (special values, nothing to compute,"
    " memory that overlaps), unless they must be refused. Hostile calls must be right or refused, and then change"
    " nothing."
)


def write_page(path: Path, counts: Counter[str], faults: Iterable[str], command: str, *, is_sanitized: bool) -> None:
    """Write the page of a campaign.

    Args:
        path: The Markdown file.
        counts: Calls by "op kind".
        faults: What was wrong, a text each that begins with the op.
        command: What made the calls.
        is_sanitized: Whether the C++ ran under AddressSanitizer and UBSan.
    """
    faulty = Counter(fault.split(" ", 1)[0] for fault in faults)
    table: dict[str, tuple[int, ...]] = {
        op: (counts[f"{op} valid"], counts[f"{op} edge"], counts[f"{op} hostile"], faulty[op]) for op in GENERATORS
    }
    table["all"] = tuple(map(sum, zip(*table.values(), strict=True)))
    lines = (
        f"# {counts.total():,} random calls{f', {SANITIZED}' if is_sanitized else ''}",
        "",
        f"`{command}`, on {time.strftime('%Y-%m-%d', time.gmtime())}: {this_machine().describe()}.",
        "",
        LEGEND,
        "",
        "| op | valid | edge | hostile | faults |",
        "|---|---:|---:|---:|---:|",
        *("| " + " | ".join((op, *map("{:,}".format, row))) + " |" for op, row in table.items() if any(row)),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
