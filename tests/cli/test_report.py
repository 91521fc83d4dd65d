"""`scanlab report` of recorded trials: its files, other machines, and two results side by side."""

from __future__ import annotations

import dataclasses

from helpers.records import block, measurement, trial
from scanlab.bench.store import TrialStore
from scanlab.contract.machine import this_machine

HERE = this_machine()
ELSEWHERE = dataclasses.replace(HERE, silicon=dataclasses.replace(HERE.silicon, model_name="another processor"))


def record(folder, time_us: int, **changes) -> None:
    """Record a trial of eight clean blocks in `folder`."""
    blocks = [block([time_us * 1000 + index], [800_000]) for index in range(8)]
    TrialStore(folder).append(trial(phase="comparison", measurement=measurement(*blocks), **changes))


def test_a_report_of_another_machine_says_so(run, tmp_path):
    record(tmp_path / "theirs", 100, machine=ELSEWHERE)
    outcome = run("report", "theirs")
    assert outcome.code == 0
    assert "nothing was measured here: the report is about another processor" in outcome.err
    assert "Machine: another processor" in (tmp_path / "theirs" / "report" / "report.md").read_text()


def test_two_results_are_compared_in_the_terminal_and_on_a_page(run, tmp_path):
    record(tmp_path / "before", 100)
    record(tmp_path / "after", 50, source_hash="1" * 16)
    outcome = run("report", "--compare", "before", "after")
    assert outcome.code == 0
    assert "after against before: faster, times as fast: chunked 2.00" in outcome.out
    assert (tmp_path / "after" / "comparison" / "index.html").exists()


def test_results_that_have_nothing_in_common_are_refused(run, tmp_path):
    record(tmp_path / "before", 100)
    record(tmp_path / "after", 50, inputs_label="others")
    outcome = run("report", "--compare", "before", "after")
    assert outcome.code == 2
    assert "before and after have no problem with the same inputs in common" in outcome.err
    assert run("report", "--compare", "before", "nowhere").code == 2
