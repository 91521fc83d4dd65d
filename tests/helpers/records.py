"""Records made by hand for the tests of the lab."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scanlab.bench.records import Trial
from scanlab.bench.samples import Block, Measurement
from scanlab.contract.machine import this_machine
from scanlab.contract.problem import ScanProblem
from scanlab.contract.verify import Verdict

PASSED = Verdict(passed=True, errors={"out": 1e-7}, tolerances={"out": 2e-5})


def block(
    candidate_ns: Sequence[int], baseline_ns: Sequence[int], process: int = 0, disturbed: str | None = None
) -> Block:
    """A block of these samples."""
    return Block(
        tuple(candidate_ns), tuple(baseline_ns), order="cb" * len(candidate_ns), process=process, disturbed=disturbed
    )


def measurement(*blocks: Block) -> Measurement:
    """A measurement of these blocks, or of one made up."""
    return Measurement(
        baseline="reference",
        baseline_config={"threads": 1},
        baseline_source_hash="0123456789abcdef",
        calls=3,
        baseline_calls=1,
        build_ms=1.5,
        first_call_ms=2.5,
        peak_bytes=4096,
        blocks=blocks or (block([1_000_000, 1_100_000], [2_000_000, 2_100_000]),),
    )


def trial(**changes: Any) -> Trial:
    """Return a trial that went well, with some fields changed."""
    fields: dict[str, Any] = {
        "phase": "search",
        "problem": ScanProblem(batch=1, dim=4, length=8, state=2),
        "inputs_label": "made",
        "backend": "chunked",
        "source_hash": "fedcba9876543210",
        "config": {"chunk": 32, "threads": 1},
        "state": "ok",
        "machine": this_machine(),
        "seed": 3,
        "started_at": 1000.0,
        "duration_s": 0.25,
        "verdict": PASSED,
        "measurement": measurement(),
    }
    return Trial(**(fields | changes))
