"""Files as they should not be: records, profiles, decisions, breakdowns, suites, studies' attributes, storages.

Each is written as scanlab writes it and then spoiled, behind a right checksum where there is one. Whoever reads it must
get what can be read, with a notice for the rest, or an error of scanlab's own, and must be able to use what was read.
"""

from __future__ import annotations

import copy
import json
import math
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fuzz.case import Case, Results
from fuzz.draws import Draw
from helpers.records import trial
from scanlab.bench.records import encode
from scanlab.bench.store import TrialStore
from scanlab.contract.machine import this_machine
from scanlab.errors import InputError, ScanlabError
from scanlab.report import tables
from scanlab.report.breakdown import DtypeAccuracy, ModelBreakdown, OpTime, dtype_table, load_breakdowns, op_table
from scanlab.report.decision import TuningDecision, load_decisions
from scanlab.report.kernel_tuner_t4 import write_t4
from scanlab.report.select import placings, select
from scanlab.runtime.decisions import decisions
from scanlab.runtime.profile import Profile, ProfileEntry
from scanlab.suites import load_suite
from scanlab.tuning.fleet.storage_name import StorageName, mask_words
from scanlab.tuning.fleet.study_summary import StudyFacts

MEASURED = trial()
CHOSEN = ProfileEntry(MEASURED.problem, "reference", "x", {"threads": 1}, {"trial": MEASURED.to_json(), "why": "fast"})
BREAKDOWN = ModelBreakdown(
    problem="model=digits,batch=1,size=8",
    machine=this_machine(),
    before_ms=2.0,
    after_ms=1.0,
    why="fast",
    ops=(OpTime("linear", "rows=1,in_features=2,out_features=3", 1, 2.0, 1.0, 0.5),),
    dtypes=(DtypeAccuracy("float32", 1e-6, 1.0, None, None),),
)
DECISION = TuningDecision(
    problem=MEASURED.problem,
    inputs_label=MEASURED.inputs_label,
    machine=this_machine(),
    why="fast",
    evidence="comparison",
    backend="chunked",
    config={"chunk": 16},
    gain=None,
    ties=("native",),
    noise_floor=0.01,
    rounds=9,
    disturbed_rounds=1,
    deployed=True,
    command="scanlab tune",
    version="0.2.0",
    budget="3 min",
)
FACTS = {"kind": "search", "problem": MEASURED.problem.key, "machine": this_machine().to_json(), "backend": "native"}

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 10**400, 0.0, 1e308, -1e308, 1e-320),
    *(math.nan, math.inf, -math.inf, "", " ", "x", "\0", "\ud800", "é" * 3000, "[/]", "%s{}", "../x", "<b>"),
    *("native", "reference", "ok", "wrong", "batch=1,dim=8,length=16", "1e5"),
    *([], {}, [[]], [None], [0] * 50, {"": None}, {"a": {"b": 1}}),
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the keys that lead to each part of a JSON value."""
    if at:
        yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*at, key))


def spoil(draw: Draw, value: Any) -> Any:
    """Return a copy of a JSON value with one to three parts removed, added, scaled or replaced."""
    spoiled = copy.deepcopy(value)
    for _ in range(draw.pick((1, 1, 1, 2, 3))):
        *way, last = draw.pick(list(places(spoiled)))
        part = spoiled
        for key in way:
            part = part[key]
        how, held = draw.randrange(4), part[last]
        if how == 0 and isinstance(part, dict):
            part[draw.pick(("extra", "", "id", last))] = draw.pick(ODD)
        elif how == 1 and isinstance(part, dict) and len(part) > 1:
            del part[last]
        elif how == 2 and isinstance(held, int | float):
            part[last] = held * draw.pick((-1, 0, 10**6, 1e-300, 1e300))
        else:
            part[last] = draw.pick(ODD)
    return spoiled


def damage(draw: Draw, text: str) -> str:
    """Return a text with a character changed, cut off, or nested too deeply."""
    place = draw.randrange(len(text))
    return draw.pick(
        (text[:place], text[:place] + chr(draw.randrange(32, 300)) + text[place + 1 :], "[" * 99_999, '{"a":' * 50_000)
    )


def line(record: dict[str, Any]) -> bytes:
    """Return a record as a line with its checksum."""
    body = json.dumps(record, separators=(",", ":")).encode()[1:]
    return b'{"crc32":"%08x",%s\n' % (zlib.crc32(body), body)


def use_records(folder: Path, record: bytes) -> None:
    """Load a record beside a good one, and make what a report shows of both."""
    (folder / "trials").mkdir()
    (folder / "trials" / "a.jsonl").write_bytes(line(json.loads(record)) + encode(MEASURED))
    found = TrialStore(folder).load().trials
    if MEASURED.id not in {each.id for each in found}:
        raise AssertionError("a good record is lost")
    write_t4(found, this_machine(), folder)
    selected = select(found, this_machine()).trials
    placings(selected)
    tables.readable_speedups(tables.speedup_table(selected))
    tables.readable_errors(tables.error_table(selected))
    tables.markdown(tables.failure_table(found))
    for table in (tables.trial_table, tables.length_table):
        tables.csv(table(found))


def use_profile(folder: Path, content: bytes) -> None:
    """Load a profile, serve by it, and write it again."""
    path = folder / "profile.json"
    path.write_bytes(content)
    profile = Profile.load(path)
    list(decisions(MEASURED.problem, profile))
    for entry in (*profile.entries, *profile.replaced, *profile.history(MEASURED.problem)):
        _ = entry.rank
    profile.with_entry(CHOSEN).without(MEASURED.problem).save(path)
    Profile.load(path)


def use_decision(folder: Path, content: bytes) -> None:
    """Load a decision and show it."""
    (folder / "decisions").mkdir()
    (folder / "decisions" / "a.json").write_bytes(content)
    for each in load_decisions(folder).decisions:
        "".join((each.why, each.doubts, *each.rows().values()))


def use_breakdown(folder: Path, content: bytes) -> None:
    """Load a breakdown and show its tables."""
    (folder / "models").mkdir()
    (folder / "models" / "a.json").write_bytes(content)
    for each in load_breakdowns(folder, this_machine())[0]:
        tables.markdown(op_table(each))
        tables.markdown(dtype_table(each))


def use_suite(folder: Path, content: bytes) -> None:
    """Load a suite."""
    (folder / "suites.toml").write_bytes(content)
    load_suite(f"{folder / 'suites.toml'}:mine")


def use_storage(folder: Path, text: bytes) -> None:
    """Parse the name of a storage; whatever is printed of it holds no password."""
    name = text.decode()
    try:
        shown = StorageName.parse(name).masked
    except InputError as error:
        shown = str(error)
    if "hush" in shown + "".join(mask_words(("--storage", name))):
        raise AssertionError(f"a password is shown: {shown}")


def use_facts(folder: Path, content: bytes) -> None:
    """Read what a study says that it is about, as the summary of a shared storage does."""
    try:
        StudyFacts.from_json(json.loads(content))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise InputError(str(error) or type(error).__name__) from error


SUITE = '[mine]\nsummary = "s"\nproblems = ["batch=1,dim=8,length=16"]\n'
VALUES = ("[]", "{}", "1", "-1", "1.5", "true", '""', "[1]", "[{}]", '["batch=1"]', "nan", "9" * 5000, "1979-99-99")
SECRETS = ("hush", "hush%40", "hu:hush", "hush/hush", "@hush", "hush@hush")
HOSTS = (
    "host/db",
    "host:1/db",
    "[::1]/db",
    "[::1/db",
    "host",
    "",
    "host/db?password=hush",
    "h/db?x=1&sslpassword=hush",
)
SCHEMES = ("postgresql://", "mysql+pymysql://", "grpc://", "sqlite:///", "postgresql:/", "", "x://", "p[w://", "//")


def _profile() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.json"
        Profile.empty().with_entry(CHOSEN).save(path)
        content: dict[str, Any] = json.loads(path.read_text())
        return content


Use = Callable[[Path, bytes], None]
WRITTEN: dict[str, tuple[Any, Use]] = {
    "record": ({"schema": 4, "trial": MEASURED.to_json()}, use_records),
    "profile": (_profile(), use_profile),
    "decision": (DECISION.to_json(), use_decision),
    "breakdown": (BREAKDOWN.to_json(), use_breakdown),
    "facts": (FACTS, use_facts),
}


def file(draw: Draw, *, edge: bool) -> Case:
    """Draw a file as scanlab writes it, or with `edge` a spoiled one."""
    kind = draw.pick((*WRITTEN, "suite", "storage"))
    use: Use
    if kind == "suite":
        key, value = draw.pick(("problems", "summary", "model", "op", "image_size", "x")), draw.pick(VALUES)
        text, use = SUITE, use_suite
        if edge:
            text = draw.pick((f"[mine]\n{key} = {value}\n", f"{SUITE}[other]\n{key} = {value}\n", f"{key} = {value}\n"))
    elif kind == "storage":
        who = draw.pick(("", "joe@", f"joe:{draw.pick(SECRETS)}@"))
        text, use = draw.pick(SCHEMES) + who + draw.pick(HOSTS), use_storage
    else:
        values, use = WRITTEN[kind]
        text = json.dumps(spoil(draw, values) if edge else values)
        if edge and kind != "record" and draw.chance(0.2):
            text = damage(draw, text)

    def call(given: dict[str, Any]) -> Results:
        with tempfile.TemporaryDirectory() as folder:
            try:
                use(Path(folder), given["content"])
            except ScanlabError:
                raise
            except Exception as error:  # any other error is the fault that is looked for
                raise AssertionError(f"{type(error).__name__}: {error}") from error
        return {}

    content = text.encode("utf-8", "surrogatepass")
    return Case(f"{kind} file", {"content": content}, call, lambda _: {}, lambda _: {}, may_refuse=edge)
