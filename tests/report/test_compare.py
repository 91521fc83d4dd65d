"""Two results side by side: what changed beyond the noise, and what cannot be compared."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from helpers.records import block, measurement, trial
from scanlab.contract.machine import this_machine
from scanlab.errors import ResultsError
from scanlab.report.compare import (
    Side,
    change_table,
    compare,
    environment_table,
    facts,
    headline,
    summary,
    write_comparison,
)
from scanlab.report.formatting import TIMES

HERE = this_machine()
ELSEWHERE = dataclasses.replace(HERE, silicon=dataclasses.replace(HERE.silicon, model_name="another processor"))


def timed(time_us: float, reference_us: float = 800.0, blocks: int = 8, **changes):
    """A trial of so many clean blocks, whose times differ by up to 1 %."""
    taken = [
        block([round(time_us * 1e3 * (1 + 0.01 * (index % 3 - 1)))], [round(reference_us * 1e3)])
        for index in range(blocks)
    ]
    return trial(**({"measurement": measurement(*taken), "phase": "comparison"} | changes))


def sides(before, after):
    return Side.of("old", before, (), HERE), Side.of("new", after, (), HERE)


def verdicts(before, after):
    return {change.backend: change.verdict for change in compare(*sides(before, after))}


def test_only_what_exceeds_the_noise_is_a_change():
    before = [timed(100, backend="native"), timed(200), timed(300, backend="two_phase")]
    new: dict[str, Any] = {"source_hash": "1" * 16}
    after = [timed(80, backend="native", **new), timed(201), timed(360, backend="two_phase", **new)]
    assert verdicts(before, after) == {
        "native": "faster",
        "chunked": "no difference shown",
        "two_phase": "slower",
    }
    one, other = sides(before, after)
    said = summary(compare(one, other), one, other)
    assert said == (
        "new against old: faster, times as fast: native 1.25; slower, times as fast: two_phase 0.833;"
        " no difference shown for 1 of 3."
    )


def test_what_slows_the_whole_machine_is_no_change_of_a_backend():
    before, after = [timed(100)], [timed(150, reference_us=1200.0)]
    assert verdicts(before, after) == {"chunked": "no difference shown"}
    row = change_table(compare(*sides(before, after))).iloc[0]
    assert (row["before"], row["after"]) == (f"100 µs (8.00{TIMES})", f"150 µs (8.00{TIMES})")
    row = change_table(compare(*sides(before, [timed(150, machine=ELSEWHERE)]))).iloc[0]
    assert (row["before"], row["after"]) == ("100 µs", "150 µs")


def test_between_two_machines_times_are_compared():
    after = [timed(150, reference_us=1200.0, machine=ELSEWHERE)]
    assert verdicts([timed(100)], after) == {"chunked": "slower"}
    one, other = sides([timed(100)], after)
    different = environment_table(one, other)
    assert different["of"].tolist() == ["processor"]
    assert different["after"].tolist() == ["another processor"]


def test_what_an_unchanged_backend_differs_by_is_noise():
    before = [timed(100), timed(200, backend="native", source_hash="1" * 16)]
    after = [timed(120), timed(180, backend="native", source_hash="2" * 16)]
    assert verdicts(before, after) == {"native": "no difference shown", "chunked": "no difference shown"}


def test_few_rounds_and_missing_sides_are_no_verdict():
    assert verdicts([timed(100, blocks=3)], [timed(50, blocks=3)]) == {"chunked": "too few rounds to tell"}
    assert verdicts([timed(100)], [timed(100), timed(50, backend="native")]) == {
        "native": "not measured before",
        "chunked": "no difference shown",
    }


def test_results_without_a_common_problem_are_refused_with_the_cure():
    other = timed(100, inputs_label="others")
    with pytest.raises(ResultsError, match="old and new have no problem with the same inputs.*Tune both"):
        compare(*sides([timed(100)], [other]))


def first_screen(before, after):
    """Return the headline of a comparison, and its facts by name."""
    one, other = sides(before, after)
    changes = compare(one, other)
    return headline(changes, one, other), {each.name: each.value for each in facts(changes, one, other)}


def test_the_headline_is_the_change_of_the_fastest_whichever_backend_that_is():
    before = [timed(100, backend="native"), timed(200)]
    said, shown = first_screen(before, [timed(100, backend="native"), timed(50, source_hash="1" * 16)])
    assert said == f"new is 2.00{TIMES} as fast as old"
    assert shown["Fastest in old"] == "100 µs"
    assert shown["Fastest in new"] == "50.0 µs"
    assert shown["Faster"] == "1 of 2 backends"
    said, shown = first_screen(before, [timed(101, backend="native")])
    assert said == "No difference shown"
    assert shown["Not measured in both"] == "1 of 2 backends"
    assert first_screen([timed(100, blocks=3)], [timed(50, blocks=3)])[0] == "Too few rounds to tell"


def test_the_comparison_is_a_page_with_its_figures(tmp_path):
    one, other = sides([timed(100, config={"chunk": 16, "threads": 1})], [timed(50, source_hash="1111111111111111")])
    written = write_comparison(compare(one, other), one, other, tmp_path)
    assert sorted(written) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    text = (tmp_path / "report.md").read_text()
    assert "new against old: faster, times as fast: chunked 2.00" in text
    assert all((tmp_path / target).is_file() for target in re.findall(r"\]\(([^)]+)\)", text))
    assert "faster" in (tmp_path / "index.html").read_text()
    row = change_table(compare(one, other)).iloc[0]
    assert (row["configuration before"], row["source"]) == ("chunk=16 threads=1", "changed")
