"""Decisions are kept beside the records, and shown by the report in the words of the terminal."""

from __future__ import annotations

import dataclasses
import json

import pytest

from helpers.records import block, measurement, trial
from scanlab.contract.machine import this_machine
from scanlab.errors import ResultsError
from scanlab.report.decision import TuningDecision, load_decisions, save_decisions
from scanlab.report.write import write_report

FASTEST = trial(phase="comparison", config={"chunk": 16, "threads": 1}, measurement=measurement(block([1000], [9000])))
CHOSEN = trial(phase="comparison", measurement=measurement(block([1001], [9000])))
DECISION = TuningDecision(
    problem=CHOSEN.problem,
    inputs_label=CHOSEN.inputs_label,
    machine=CHOSEN.machine,
    why=f"{CHOSEN.label}: tied with {FASTEST.label}, and chosen as the simplest.",
    evidence="comparison",
    backend=CHOSEN.backend,
    config=CHOSEN.config,
    gain="7 % (4 to 9) over native threads=1",
    ties=(FASTEST.label,),
    noise_floor=0.012,
    rounds=21,
    disturbed_rounds=4,
    deployed=True,
    command="scanlab tune --budget 3m",
    version="0.2.0",
    budget="3 min 00 s",
    attainable_share=0.61,
    notes=("no hold-out comparison: there was no time",),
)


def test_a_decision_reads_back(tmp_path):
    save_decisions([DECISION], tmp_path)
    assert load_decisions(tmp_path) == ((DECISION,), ())


def test_a_decision_without_notes_reads_back(tmp_path):
    values = DECISION.to_json()
    del values["notes"]
    assert TuningDecision.from_json(values) == dataclasses.replace(DECISION, notes=())


def test_what_was_not_deployed_leaves_the_deployed_decision(tmp_path):
    weaker = dataclasses.replace(DECISION, deployed=False, why="No winner.", backend=None)
    save_decisions([weaker], tmp_path)
    assert load_decisions(tmp_path).decisions == (weaker,)
    save_decisions([DECISION], tmp_path)
    save_decisions([weaker], tmp_path)
    assert load_decisions(tmp_path).decisions == (DECISION,)


@pytest.mark.parametrize(
    "changes", [None, {"rounds": "many"}, {"noise_floor": []}, {"why": None}, {"ties": [3]}, {"config": [1]}]
)
def test_a_damaged_file_is_skipped_with_a_notice(tmp_path, changes):
    save_decisions([DECISION], tmp_path)
    (path,) = (tmp_path / "decisions").iterdir()
    path.write_text("{}" if changes is None else json.dumps(json.loads(path.read_text()) | changes))
    decisions, (notice,) = load_decisions(tmp_path)
    assert decisions == ()
    assert str(path) in notice


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "decisions").write_text("")
    with pytest.raises(ResultsError, match="cannot write the decision"):
        save_decisions([DECISION], tmp_path)


def test_the_report_opens_with_the_decision_and_marks_what_is_deployed(tmp_path):
    write_report([FASTEST, CHOSEN], this_machine(), tmp_path, decisions=[DECISION])
    text = (tmp_path / "report.md").read_text()
    assert DECISION.why in text
    assert "Fastest:" not in text
    assert all(
        value in text
        for value in (
            "no hold-out comparison: there was no time",
            "4 of 21 rounds",
            "1.2 %",
            "61 %",
            "scanlab tune --budget 3m",
            "7 % (4 to 9)",
        )
    )
    (row,) = [line for line in text.splitlines() if "chunked (deployed)" in line]
    assert "chunk=32" in row


def test_a_decision_of_another_machine_is_not_shown(tmp_path):
    elsewhere = dataclasses.replace(
        DECISION.machine, silicon=dataclasses.replace(DECISION.machine.silicon, model_name="another")
    )
    other = dataclasses.replace(DECISION, machine=elsewhere)
    write_report([FASTEST, CHOSEN], this_machine(), tmp_path, decisions=[other])
    assert "Decision" not in (tmp_path / "report.md").read_text()
