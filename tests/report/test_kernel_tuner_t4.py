"""T4 files hold what the format requires, in its words, and every sample."""

from __future__ import annotations

import json

import pytest

from helpers.records import trial
from scanlab.contract.machine import this_machine
from scanlab.contract.problem import ScanProblem
from scanlab.contract.verify import Verdict
from scanlab.errors import ResultsError
from scanlab.report.kernel_tuner_t4 import write_t4

FAILED = {"measurement": None, "verdict": None}
WRONG = Verdict(False, {"out": 0.5}, {"out": 2e-5}, "it disagrees")
TRIALS = [
    trial(),
    trial(config={"chunk": 64, "threads": 1}, state="pruned", reason="too slow"),
    trial(config={"chunk": 8, "threads": 1}, state="wrong", reason="it disagrees", measurement=None, verdict=WRONG),
    trial(backend="native", config={}, state="crashed", reason="RuntimeError: it fell over", **FAILED),
    trial(backend="triton", config={}, state="rejected", reason="no GPU", **FAILED),
]
# What the results schema 1.0.0 requires of every result, and its words for what went wrong.
REQUIRED = {"configuration": dict, "times": dict, "invalidity": str, "correctness": float}
INVALIDITIES = {"timeout", "compile", "runtime", "correctness", "constraints", "correct"}


def written(trials, folder):
    paths = {path.name: json.loads(path.read_text()) for path in write_t4(trials, this_machine(), folder)}
    return paths.pop("t4-metadata.json"), paths


def test_every_result_has_what_the_schema_requires(tmp_path):
    _, files = written(TRIALS, tmp_path)
    (content,) = files.values()
    assert content["schema_version"] == "1.0.0"
    assert len(content["results"]) == len(TRIALS)
    for result in content["results"]:
        assert {name: type(result[name]) for name in REQUIRED} == REQUIRED
        assert result["invalidity"] in INVALIDITIES
        assert isinstance(result["timestamp"], str)
        assert isinstance(result["times"]["runtimes"], list)
        assert all(set(each) == {"name", "value", "unit"} for each in result["measurements"])


def test_outcomes_and_samples_are_those_of_the_trials(tmp_path):
    _, files = written(TRIALS, tmp_path)
    (content,) = files.values()
    by_config = {json.dumps(result["configuration"], sort_keys=True): result for result in content["results"]}
    fine = by_config['{"backend": "chunked", "chunk": 32, "threads": 1}']
    assert (fine["invalidity"], fine["correctness"]) == ("correct", 1.0)
    assert fine["times"] == {"compilation_time": 4.0, "runtimes": [1.0, 1.1]}
    measured = {each["name"]: each["value"] for each in fine["measurements"]}
    assert measured[fine["objectives"][0]] == 1.05
    outcomes = [(result["invalidity"], result["correctness"]) for result in by_config.values()]
    assert sorted(outcomes) == sorted(
        [("correct", 1.0), ("correct", 1.0), ("correctness", 0.0), ("runtime", 0.0), ("constraints", 0.0)]
    )


def test_problems_are_apart_and_lengths_are_no_tuning_result(tmp_path):
    other = ScanProblem(batch=1, dim=4, length=9, state=2)
    _, files = written(
        [trial(), trial(problem=other), trial(phase="lengths", problem=other.replace(length=4))], tmp_path
    )
    assert [len(content["results"]) for content in files.values()] == [1, 1]


def test_the_metadata_describe_the_machine(tmp_path):
    content, _ = written(TRIALS, tmp_path)
    assert content["schema_version"] == "1.0.0"
    hardware = content["metadata"]["hardware"]
    assert hardware["hardware_description"][0]["model_name"] == this_machine().silicon.model_name
    assert hardware["operating_system"] == this_machine().software.system
    assert all(isinstance(each, str) for each in content["metadata"]["environment"]["requirements"])


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="cannot write T4 results"):
        write_t4(TRIALS, this_machine(), tmp_path / "file" / "t4")
