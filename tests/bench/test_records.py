"""A trial survives its line, and a line that holds anything else is refused."""

from __future__ import annotations

import copy
import json
import random
import re
import zlib
from dataclasses import replace
from typing import Any

import pytest

from helpers.records import block, measurement, trial
from scanlab.bench.records import SCHEMA, NewerSchemaError, RecordError, decode, encode
from scanlab.contract.verify import Verdict

DISTURBED = measurement(block([1_000_000], [2_000_000], disturbed="other processes used 90 ms of CPU"))
FAILED = Verdict(False, {"out": 1.0}, {"out": 1e-5}, "out is off")


@pytest.mark.parametrize(
    "one",
    [
        trial(),
        trial(state="pruned", reason="takes 3 times as long"),
        trial(state="wrong", measurement=None, verdict=FAILED, reason="out is off"),
        trial(state="crashed", measurement=None, verdict=None, reason="RuntimeError: boom"),
        trial(config={"exp": "fast", "flag": True, "share": 0.5}, phase="comparison"),
        trial(state="disturbed", measurement=DISTURBED, reason="every block was disturbed"),
    ],
    ids=lambda one: one.state,
)
def test_a_trial_survives_its_line(one):
    assert decode(encode(one).rstrip(b"\n")) == one


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"verdict": None}, "without a passed verdict"),
        ({"verdict": FAILED}, "without a passed verdict"),
        ({"measurement": None}, "exactly when it is ok, pruned, disturbed"),
        ({"state": "wrong", "reason": "off"}, "exactly when it is ok, pruned, disturbed"),
        ({"state": "pruned"}, "a reason exactly when"),
        ({"state": "fine"}, "state='fine': must be one of ok, wrong"),
        ({"phase": "sprint"}, "phase='sprint': must be one of search"),
    ],
)
def test_a_trial_that_contradicts_itself_is_refused(changes, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        trial(**changes)


def test_every_flipped_bit_is_noticed(tmp_path):
    line = encode(trial()).rstrip(b"\n")
    rng = random.Random(4)
    for position in rng.sample(range(len(line)), 60):
        damaged = bytearray(line)
        damaged[position] ^= 1 << rng.randrange(7)
        with pytest.raises(RecordError):
            decode(bytes(damaged))


def test_the_identity_is_the_silicon_the_libraries_the_source_and_the_configuration():
    one = trial()
    same = trial(seed=9, started_at=5.0, phase="comparison")
    assert same.identity == one.identity
    silicon = replace(one.machine, silicon=replace(one.machine.silicon, usable_cpus=999))
    torch = replace(one.machine, software=replace(one.machine.software, torch="0.1"))
    for change in (
        {"machine": silicon},
        {"machine": torch},
        {"source_hash": "0"},
        {"config": {"chunk": 64, "threads": 1}},
        {"problem": one.problem.replace(length=9)},
        {"inputs_label": "photograph"},
    ):
        assert trial(**change).identity != one.identity


def test_the_order_of_tunables_is_no_part_of_the_identity():
    assert trial(config={"threads": 1, "chunk": 32}).identity == trial().identity


def test_lines_are_json_for_other_programs():
    record = json.loads(encode(trial()))
    assert record["schema"] == SCHEMA
    assert record["trial"]["measurement"]["blocks"][0]["candidate_ns"] == [1_000_000, 1_100_000]


def line_of(record):
    """Return `record` as a line with a right checksum."""
    body = json.dumps(record, separators=(",", ":")).encode()[1:]
    return b'{"crc32":"%08x",%s' % (zlib.crc32(body), body)


def changed(path, value):
    """Return a record of which one field, named by its path, holds `value`."""
    record = copy.deepcopy({"schema": SCHEMA, "trial": json.loads(encode(trial()))["trial"]})
    *parents, last = path.split(".")
    place: Any = record
    for name in parents:
        place = place[int(name) if name.isdigit() else name]
    place[int(last) if last.isdigit() else last] = value
    return record


ODD = [
    ("trial.note", "a field that this version does not know"),
    ("trial", None),
    ("trial", []),
    ("trial", "text"),
    ("schema", "2"),
    ("schema", None),
    ("trial.id", 5),
    ("trial.id", ["a"]),
    ("trial.id", "\ud800"),
    ("trial.state", "fine"),
    ("trial.state", []),
    ("trial.phase", 7),
    ("trial.problem", "batch=1"),
    ("trial.problem", None),
    ("trial.op", None),
    ("trial.op", "no_such_op"),
    ("trial.config", []),
    ("trial.config", {"threads": [1]}),
    ("trial.config", {"threads": None}),
    ("trial.backend", None),
    ("trial.source_hash", {}),
    ("trial.inputs_label", 1),
    ("trial.seed", "x"),
    ("trial.seed", 10**30),
    ("trial.seed", 1.5),
    ("trial.started_at", "yesterday"),
    ("trial.started_at", None),
    ("trial.started_at", float("nan")),
    ("trial.started_at", 1e300),
    ("trial.started_at", 10**400),
    ("trial.duration_s", float("inf")),
    ("trial.duration_s", True),
    ("trial.reason", 5),
    ("trial.verdict", {"passed": True}),
    ("trial.verdict", {"passed": True, "errors": {"out": "small"}, "tolerances": {"out": 1.0}, "reason": None}),
    ("trial.verdict.passed", "yes"),
    ("trial.verdict.tolerances", {}),
    ("trial.machine", {}),
    ("trial.machine.silicon.usable_cpus", 0),
    ("trial.machine.silicon.usable_cpus", "2"),
    ("trial.machine.silicon.flags", [1]),
    ("trial.measurement.blocks", []),
    ("trial.measurement.blocks", [7]),
    ("trial.measurement.blocks.0.candidate_ns", []),
    ("trial.measurement.blocks.0.candidate_ns", [0, 0]),
    ("trial.measurement.blocks.0.candidate_ns", [-5, -5]),
    ("trial.measurement.blocks.0.candidate_ns", ["1"]),
    ("trial.measurement.blocks.0.candidate_ns", "12"),
    ("trial.measurement.calls", None),
    ("trial.measurement.peak_bytes", -4096),
]


@pytest.mark.parametrize(("path", "value"), ODD, ids=[f"{path}={str(value)[:20]}" for path, value in ODD])
def test_odd_content_behind_a_right_checksum_is_a_record_error(path, value):
    with pytest.raises(RecordError, match="its content is not understood"):
        decode(line_of(changed(path, value)))


@pytest.mark.parametrize(
    "field", [name for name in json.loads(encode(trial()))["trial"] if name not in ("id", "op", "reason")]
)
def test_a_record_that_lacks_a_field_is_a_record_error(field):
    record = changed("schema", SCHEMA)
    del record["trial"][field]
    with pytest.raises(RecordError):
        decode(line_of(record))


def test_json_of_any_depth_is_a_record_error():
    body = b'"schema":2,"trial":' + b"[" * 100_000
    with pytest.raises(RecordError):
        decode(b'{"crc32":"%08x",%s' % (zlib.crc32(body), body))


def test_a_newer_schema_is_told_from_damage():
    with pytest.raises(NewerSchemaError, match=f"it has schema 99; this scanlab reads up to {SCHEMA}"):
        decode(line_of(changed("schema", 99)))


def test_a_record_of_the_third_schema_still_loads():
    record = changed("trial.phase", "race") | {"schema": 3}
    del record["trial"]["op"]
    loaded = decode(line_of(record))
    assert (loaded.phase, loaded.problem) == ("comparison", trial().problem)


def test_a_record_of_the_first_schema_still_loads():
    record = changed("schema", 1)
    measurement = record["trial"]["measurement"]
    for old in ("anchor", "anchor_config", "anchor_source_hash", "anchor_calls"):
        measurement[old] = measurement.pop(old.replace("anchor", "baseline"))
    measurement.pop("reference_blocks", None)
    for each in measurement["blocks"]:
        each["anchor_ns"] = each.pop("baseline_ns")
        del each["mhz"]
    loaded, now = decode(line_of(record)).measurement, trial().measurement
    assert loaded.baseline == now.baseline
    assert loaded.log_ratio == now.log_ratio
    assert loaded.blocks[0].mhz is None
