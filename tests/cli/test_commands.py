"""Output of list, doctor, best, verify and bench, and the errors of the program."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scanlab.bench.process_worker import ProcessWorker
from scanlab.cli.app import COMMANDS as TABLE
from scanlab.cli.doctor import KEEP_FREED
from scanlab.contract import registry
from scanlab.contract.problem import ScanProblem
from scanlab.contract.space import Space, Tunable
from scanlab.errors import InputError
from scanlab.runtime.profile import Profile, ProfileEntry, profile_path

SMALL = "batch=1,dim=6,length=20,state=4"
COMMANDS = sorted(TABLE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(run, command):
    outcome = run(command, "--help")
    assert outcome.code == 0
    assert re.search(rf"Example[^:]*:\s+scanlab\s+{command}", outcome.out)


def test_list_names_every_backend_and_its_tunables(run):
    facts = run("list", "--json").json
    assert facts["backends"][0]["name"] == "reference"
    assert sorted(each["name"] for each in facts["backends"]) == list(registry.names())
    assert facts["failures"] == {}
    shown = run("list").out
    for name in registry.names():
        assert name in shown


def test_list_of_one_backend_shows_values_and_defaults(run):
    assert re.search(r"chunk\s+32\s+8 16 32", run("list", "chunked").out)
    assert run("list", "chunked", "--json").json["tunables"][0]["name"] == "chunk"


def test_doctor_reports_the_machine_and_the_threads(run):
    findings = {each["subject"]: each for each in run("doctor", "--json").json}
    assert {"machine", "threads", "OpenMP", "compiler", "profile", "backend reference"} <= findings.keys()
    assert "usable" in findings["threads"]["found"]


def test_doctor_counts_the_openmp_runtimes():
    # In a process of its own: a test before this one may have loaded a library that brings another.
    done = subprocess.run([sys.executable, "-m", "scanlab", "doctor", "--json"], capture_output=True, check=False)
    findings = {each["subject"]: each for each in json.loads(done.stdout)}
    assert findings["OpenMP"]["found"] == "one runtime"


@pytest.mark.parametrize(
    ("modes", "asked", "found", "cured"),
    [
        ("always [madvise] never", None, "on request (madvise)", True),
        ("always [madvise] never", "1", "by scanlab and torch", False),
        ("[always] madvise never", None, "always on", False),
        (None, None, "does not say", False),
    ],
)
def test_doctor_says_what_large_tensors_lie_on(run, monkeypatch, tmp_path, modes, asked, found, cured):
    file = tmp_path / "enabled"
    if modes is not None:
        file.write_text(modes)
    monkeypatch.setattr("scanlab.cli.doctor.HUGE_PAGES", file)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", asked or "0")
    finding = next(each for each in run("doctor", "--json").json if each["subject"] == "huge pages")
    assert found in finding["found"]
    assert bool(finding["cure"]) == cured


def test_doctor_says_how_to_keep_freed_memory(run, monkeypatch):
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("doctor knows the settings of glibc's allocator alone")

    def cure():
        return next(each["cure"] for each in run("doctor", "--json").json if each["subject"] == "freed memory")

    for name in KEEP_FREED:
        monkeypatch.delenv(name, raising=False)
    assert all(name in cure() for name in KEEP_FREED)
    for name, threshold in KEEP_FREED.items():
        monkeypatch.setenv(name, str(threshold))
    assert not cure()


def test_doctor_says_when_the_compiler_is_missing(run, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    outcome = run("doctor")
    assert outcome.code == 1
    assert "CXX='no-such-compiler' does not run" in outcome.out
    assert "cure: install a C++20 compiler" in outcome.out


def test_best_follows_the_profile_and_says_on_what_basis(run):
    assert run("best", "--problem", SMALL, "--json").json[0]["basis"] == "default"
    problem = ScanProblem.parse(SMALL)
    chunked = registry.get("chunked")
    entry = ProfileEntry(problem, "chunked", chunked.source_hash, {"chunk": 16, "threads": 1}, {"why": "it won"})
    Profile.empty().with_entry(entry).save(profile_path())
    exact = run("best", "--problem", SMALL, "--json").json[0]
    assert (exact["backend"], exact["config"]["chunk"], exact["basis"]) == ("chunked", 16, "exact")
    assert "it won" in run("best", "--problem", SMALL).out
    assert run("best", "--problem", SMALL.replace("20", "25"), "--json").json[0]["basis"] == "nearest"


def test_a_damaged_profile_is_refused_by_name(run):
    path = profile_path()
    path.parent.mkdir(parents=True)
    path.write_text("{")
    outcome = run("best", "--problem", SMALL)
    assert outcome.code == 2
    assert "is damaged" in outcome.err
    assert run("doctor").code == 1


def test_doctor_complains_of_a_profile_that_is_named_and_not_there(run, monkeypatch):
    assert next(each for each in run("doctor", "--json").json if each["subject"] == "profile")["fine"]
    monkeypatch.setenv("SCANLAB_PROFILE", "nowhere.json")
    finding = next(each for each in run("doctor", "--json").json if each["subject"] == "profile")
    assert not finding["fine"]
    assert "cannot read the profile nowhere.json: No such file or directory. Run `scanlab tune`" in finding["found"]


def test_verify_compares_configurations_with_the_reference(run):
    outcome = run("verify", "two_phase", "chunked:chunk=16", "--problem", SMALL, "--json")
    assert outcome.code == 0
    assert {proof["state"] for proof in outcome.json} == {"ok"}
    assert {proof["backend"] for proof in outcome.json} == {"two_phase", "chunked"}
    assert all(0 < proof["worst"] < proof["allowed"] for proof in outcome.json)
    chunks = {proof["config"]["chunk"] for proof in outcome.json if proof["backend"] == "chunked"}
    assert chunks == {16}


def test_verify_interrupted_shows_what_it_has_and_where_it_was(run, monkeypatch):
    verify = ProcessWorker.verify

    def verify_until_ctrl_c(worker, candidate):
        if not candidate.is_default:
            raise KeyboardInterrupt
        return verify(worker, candidate)

    monkeypatch.setattr(ProcessWorker, "verify", verify_until_ctrl_c)
    monkeypatch.setattr(registry, "parse_selection", lambda text: (with_threads(registry.get(text)), {}))
    outcome = run("verify", "reference", "--problem", SMALL)
    assert outcome.code == 130
    assert "1 ok, 0 rejected, 0 wrong, 0 crashed" in outcome.out
    assert f"interrupted at reference threads=7 on {ScanProblem.parse(SMALL).key}" in outcome.err


@pytest.mark.parametrize("command", [("verify",), ("bench",), ("tune", "--trials", "1", "--backends")])
def test_sigterm_is_an_interruption(run, monkeypatch, command):
    def terminated(worker, candidate):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the process goes on")

    monkeypatch.setattr(ProcessWorker, "verify", terminated)
    monkeypatch.setattr(ProcessWorker, "prepare", terminated)
    assert run(*command, "two_phase", "--problem", SMALL).code == 130
    assert not profile_path().exists()


def with_threads(backend):
    """`backend` as on a machine where it may choose between two numbers of threads."""
    return replace(backend, space=Space((Tunable("threads", (1, 7), 1),)))


def test_verify_lists_a_rejected_problem_with_its_reason(run):
    outcome = run("verify", "reference", "--problem", "batch=1,dim=2,length=3,state=300")
    assert outcome.code == 3  # nothing ran
    assert "reference rejected batch=1,dim=2,length=3,state=300:" in outcome.out
    assert "state 300: it takes at most 256" in outcome.out
    assert len(run("verify", "triton").out.splitlines()) < 5  # one reason for all problems is said once


def test_bench_times_what_was_named_and_records_it(run, tmp_path):
    outcome = run("bench", "two_phase", "--problem", SMALL, "--budget", "2s", "--out", "here", "--json")
    (comparison,) = outcome.json
    # Beside other work there may be too few clean rounds to name it; it is recorded all the same.
    assert outcome.code == (0 if "two_phase" in comparison["why"] else 3)
    (trial,) = comparison["trials"]
    assert trial["phase"] == "comparison"
    assert trial["verdict"]["passed"]
    assert list((tmp_path / "here" / "trials").glob("*.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["list", "nativ"], "no backend or op is called 'nativ'. Did you mean 'native'?"),
        (["list", "selectiv_scan"], "no backend or op is called 'selectiv_scan'. Did you mean 'selective_scan'?"),
        (["best", "--problem", "batch=1"], "lacks dim, length"),
        (["best", "--suite", "vim-giant"], "no suite is called 'vim-giant': there are vim-tiny"),
        (["best", "--suite", "missing.toml:mine"], "cannot read the suites in missing.toml"),
        (["best", "--suite", "vim-tiny", "--image", "missing.jpg"], "missing.jpg does not exist"),
        (["best", "--problem", SMALL, "--suite", "vim-tiny"], "leave --suite and --image out"),
        (["bench", "chunked:chunk=3", "--problem", SMALL], "chunk=3 in 'chunked:chunk=3': must be one of 8, 16"),
        (["bench", "chunked", "--problem", SMALL, "--budget", "soon"], "duration 'soon': must be a number"),
        (["tune", "--problem", SMALL, "--budget", ""], "duration '': must be a number"),
        (["best", "--suite", ""], "no suite is called ''"),
        (["bench", "chunked", "chunked", "--problem", SMALL], "'chunked' is given 2 times: name it once"),
        (["verify", "chunked", "chunked", "--problem", SMALL], "'chunked' is given 2 times: name it once"),
        (["bench", "chunked", "--problem", SMALL, "--budget", "721h"], "must be at most 720h"),
        (["bench", "chunked", "--problem", SMALL, "--out", "/proc/nowhere"], "cannot write results"),
        (["verify", "--model", "vim-giant"], "--model vim-giant: must be one of vim-tiny"),
        (["verify", "--model", "vim-tiny", "--image", "missing.jpg"], "missing.jpg does not exist"),
        (["report", "nowhere"], "no trials are recorded in nowhere: name a folder that `scanlab tune` wrote to"),
        (["verfy"], "there is no command 'verfy': `scanlab --help` lists them. Did you mean 'verify'?"),
        (["validate"], "`scanlab validate` is now `scanlab verify --model vim-tiny`"),
        (["check"], "`scanlab check` is now `scanlab best --recheck`"),
        (["classify", "photo.jpg"], "examples/classify_an_image.py"),
        (["verify", "--model", "vim-tiny", "--problem", SMALL], "leave --problem and --suite out"),
        (["best", "--recheck", "--suite", "vim-tiny"], "leave --problem, --suite and --image out"),
        (["run", "--record", "nowhere/suite.toml", "-m", "this"], "nowhere/suite.toml: cannot be written"),
        (["best", "--suite", "mine.toml"], "one in a file of yours is FILE.toml:NAME"),
        (["fleet", "--storage", "nowhere/studies.journal"], "there is no such file; name the one"),
        (["fleet", "--storage", "grpc://nowhere"], "error: --storage grpc://nowhere: a proxy is named as"),
        (["tune", "--problem", SMALL, "--max-error", "-1"], "'--max-error'"),
        (["tune", "--budgte", "10s"], "No such option: --budgte. Did you mean 'budget'?"),
        (["tune", "--nosuch"], "No such option: --nosuch. `scanlab tune --help`"),
        (
            ["tune", "--capture", "mine.py", "--nosuch"],
            "No such option: --nosuch. Arguments of the script come after --",
        ),
    ],
)
def test_bad_input_is_refused_with_the_cure_and_no_traceback(run, tmp_path, arguments, complaint):
    outcome = run(*arguments)
    assert outcome.code == 2
    assert complaint in outcome.err
    assert "Traceback" not in outcome.err
    assert not list(tmp_path.glob("nowhere*"))


def test_durations():
    from scanlab.cli.duration import parse_duration

    assert [parse_duration(text) for text in ("90s", "3m", "1h30m", "45", "0.5m")] == [90, 180, 5400, 45, 30]
    for text in ("", "m", "3x", "3m!", "0s"):
        with pytest.raises(InputError, match="duration"):
            parse_duration(text)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["tune", "--batch", "2"], "--dtype, --max-logit-error and --min-agreement are of --model"),
        (["tune", "--dtype", "float32"], "are of --model"),
        (["tune", "--model", "digits", "--threads", "1"], "--model takes --budget"),
        (["best", "--budget", "3s"], "--budget and --out are of --recheck"),
        (["verify", "reference", "--size", "8"], "--size and --dtypes are of --model"),
        (["profile", "diff", "missing.json"], "there is no profile missing.json"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(run, arguments, complaint):
    outcome = run(*arguments)
    assert outcome.code == 2
    assert complaint in outcome.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(("output", "code"), [("> /dev/full", 3), (">&-", 0)])
def test_an_output_that_nobody_takes_ends_in_a_sentence(output, code):
    command = f"{shlex.quote(sys.executable)} -m scanlab list {output}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
