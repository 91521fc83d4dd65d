"""Workers: verified before timed, and a candidate that dies or hangs costs one process, not the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
import torch

from helpers.fakes import TINY, crashing, fake, sleepy, wrong
from scanlab.bench.context import BenchmarkContext, Candidate
from scanlab.bench.process_worker import ProcessWorker, open_worker
from scanlab.bench.worker import CandidateFailedError, LocalWorker
from scanlab.contract import registry
from scanlab.contract.backend import Capabilities, at_most
from scanlab.contract.problem import ScanOutput, make_inputs
from scanlab.errors import UnavailableError

REFERENCE = Candidate(registry.get("reference"), {"threads": 1})
TWO_PHASE = Candidate(registry.get("two_phase"), {"threads": 1})

# Installed as an entry point in a folder of its own, as a third party's backend is.
DANGEROUS = """
import os, signal, subprocess, sys, time
from pathlib import Path
from scanlab.contract import registry
from scanlab.contract.backend import Backend
from scanlab.contract.space import Space, Tunable

def make(problem, config):
    reference = registry.get("reference").build(problem, {"threads": 1})
    def scan(*inputs):
        if config["how"] == "dies" or (config["how"] == "dies late" and Path(os.environ["NOW"]).exists()):
            os.kill(os.getpid(), signal.SIGSEGV)
        if config["how"] == "hangs":
            time.sleep(600)
        return reference(*inputs)
    if config["how"] == "compiles":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(os.environ["COMPILER_PID"]).write_text(str(child.pid))
        child.wait()
    return scan

tunable = Tunable("how", ("well", "dies", "dies late", "hangs", "compiles"), "well")
backend = Backend("dangerous", "made up", 9, (Path(__file__),), Space((tunable,)),
                  registry.get("reference").capabilities, make)
"""


@pytest.fixture(scope="module")
def context():
    return BenchmarkContext.of(TINY, make_inputs(TINY), "made", seed=0)


@pytest.fixture
def dangerous(tmp_path, monkeypatch):
    """Candidates of a backend that another process finds by name, and that may kill it."""
    (tmp_path / "dangerous.py").write_text(DANGEROUS)
    info = tmp_path / "dangerous-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dangerous\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[scanlab.backends]\ndangerous = dangerous:backend\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH")))))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "dangerous", raising=False)
    import dangerous

    return lambda how: Candidate(dangerous.backend, {"how": how})


@pytest.fixture
def worker(context):
    """A worker in a process of its own."""
    made = ProcessWorker(context)
    yield made
    made.close()


def test_a_right_candidate_is_verified_and_calibrated(context):
    evaluation = LocalWorker(context).prepare(REFERENCE)
    assert (evaluation.state, evaluation.reason) == ("ok", None)
    assert evaluation.verdict.passed
    assert min(evaluation.build_ms, evaluation.first_call_ms, evaluation.call_ms) > 0


def test_building_and_the_first_call_are_timed_apart(context):
    evaluation = LocalWorker(context).prepare(Candidate(sleepy(delays_ms=(30.0,)), {"delay_ms": 30.0}))
    assert evaluation.build_ms < 30 <= evaluation.first_call_ms


def test_a_wrong_candidate_has_its_errors_and_cannot_be_timed(context):
    worker, candidate = LocalWorker(context), Candidate(wrong(), {"scale": 2.0})
    evaluation = worker.prepare(candidate)
    assert evaluation.state == "wrong"
    assert evaluation.verdict.errors["out"] == pytest.approx(1.0, rel=1e-3)
    assert "out is off" in evaluation.reason
    with pytest.raises(KeyError):
        worker.take_round([candidate], REFERENCE, 0)


def test_a_scan_that_is_right_on_the_given_inputs_alone_is_wrong(context):
    """It has learnt the answer to the inputs that it is timed on."""

    def around(scan, config):
        answer = scan(*context.inputs)
        return lambda *inputs: ScanOutput(*(tensor.clone() for tensor in answer))

    assert LocalWorker(context).prepare(Candidate(fake("learnt", around), {})).state == "wrong"


def test_wrong_gradients_are_wrong():
    problem = TINY.replace(gradients=True)
    context = BenchmarkContext.of(problem, make_inputs(problem), "made", seed=0)

    def around(scan, config):
        def detached(*inputs):
            out, last_state = scan(*inputs)
            # The value is right and the gradient is half of what it should be.
            return ScanOutput(out / 2 + (out / 2).detach(), last_state)

        return detached

    evaluation = LocalWorker(context).prepare(Candidate(fake("detached", around), {}))
    assert evaluation.state == "wrong"
    assert "grad_" in evaluation.reason


@pytest.mark.parametrize("at_call", [0, 1])
def test_an_exception_is_a_reason(context, at_call):
    evaluation = LocalWorker(context).prepare(Candidate(crashing(at_call), {}))
    assert (evaluation.state, evaluation.reason) == ("crashed", "RuntimeError: the kernel fell over")


def test_a_problem_that_the_backend_does_not_solve_is_rejected(context):
    choosy = fake("choosy", lambda scan, config: scan)
    choosy = type(choosy)(**{**vars(choosy), "capabilities": Capabilities(dtypes=("float64",))})
    evaluation = LocalWorker(context).prepare(Candidate(choosy, {}))
    assert evaluation.state == "rejected"
    assert "dtype float32" in evaluation.reason


def test_an_interruption_is_no_crash(context):
    def around(scan, config):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LocalWorker(context).prepare(Candidate(fake("stopped", around), {}))


def test_one_that_raises_while_it_is_timed_is_named(context):
    due = []

    def around(scan, config):
        return lambda *inputs: 1 / 0 if due else scan(*inputs)

    worker, late = LocalWorker(context), Candidate(fake("late", around), {})
    assert worker.prepare(late).state == worker.prepare(REFERENCE).state == "ok"
    due.append(True)
    with pytest.raises(CandidateFailedError, match="ZeroDivisionError") as failure:
        worker.take_round([REFERENCE, late], REFERENCE, 0)
    assert failure.value.candidate == late


def test_a_process_does_the_same(worker):
    assert worker.prepare(REFERENCE).state == worker.prepare(TWO_PHASE).state == "ok"
    one, other, control = worker.take_round([TWO_PHASE, REFERENCE, TWO_PHASE], REFERENCE, number=3)
    assert one.baseline_ns == other.baseline_ns == control.baseline_ns
    assert {one.round, other.round} == {3}
    peak = worker.peak_bytes(TWO_PHASE)
    assert peak is None or isinstance(peak, int)
    worker.restart()
    assert worker.prepare(REFERENCE).state == "ok"
    (again,) = worker.take_round([REFERENCE], REFERENCE, 0)
    assert again.process != one.process


def test_another_context_takes_the_place_of_the_first(worker):
    worker.prepare(REFERENCE)
    longer = TINY.replace(length=9)
    worker.load(BenchmarkContext.of(longer, make_inputs(longer), "made", seed=0))
    assert worker.prepare(REFERENCE).state == "ok"
    assert worker.take_round([REFERENCE], REFERENCE, 0)


def test_a_segmentation_fault_costs_one_process(worker, dangerous):
    assert worker.prepare(REFERENCE).state == "ok"
    evaluation = worker.prepare(dangerous("dies"))
    assert (evaluation.state, evaluation.reason) == ("crashed", "its process was ended by SIGSEGV")
    # What had been prepared is prepared again.
    assert worker.take_round([REFERENCE], REFERENCE, 0)


def test_one_that_dies_while_it_is_timed_is_named(worker, dangerous, tmp_path, monkeypatch):
    monkeypatch.setenv("NOW", str(tmp_path / "now"))
    late = dangerous("dies late")
    assert worker.prepare(late).state == worker.prepare(REFERENCE).state == "ok"
    (tmp_path / "now").touch()
    with pytest.raises(CandidateFailedError, match="SIGSEGV") as failure:
        worker.take_round([REFERENCE, late], REFERENCE, 0)
    assert failure.value.candidate == late


def test_one_that_hangs_is_killed(context, dangerous):
    worker = ProcessWorker(context, timeout_s=8.0)
    try:
        evaluation = worker.prepare(dangerous("hangs"))
    finally:
        worker.close()
    assert evaluation.state == "crashed"
    assert evaluation.reason == "it still ran after 8 s, and its process was killed"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda each: each.name)
def test_a_worker_and_its_compilers_end_with_whoever_started_them(dangerous, tmp_path, monkeypatch, how):
    noted = tmp_path / "pid"
    monkeypatch.setenv("COMPILER_PID", str(noted))
    code = f"""
    import sys
    sys.path.insert(0, {str(Path(__file__).parents[1])!r})
    from helpers.fakes import TINY
    from scanlab.bench.context import BenchmarkContext, Candidate
    from scanlab.bench.process_worker import ProcessWorker
    from scanlab.contract import registry
    from scanlab.contract.problem import make_inputs
    worker = ProcessWorker(BenchmarkContext.of(TINY, make_inputs(TINY), "made", seed=0))
    worker.prepare(Candidate(registry.get("dangerous"), {{"how": "compiles"}}))
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: noted.exists() and noted.read_text())
        parent.send_signal(how)
        assert parent.wait(timeout=60) != 0
        compiler = int(noted.read_text())
        wait_until(lambda: not runs(compiler))
    finally:
        parent.kill()


def wait_until(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_backends_that_another_process_does_not_find_run_here_and_it_is_said(context):
    worker, said = open_worker(context, [sleepy(), REFERENCE.backend])
    assert not worker.isolated
    assert "another one does not find sleepy by name" in said[0]
    worker, said = open_worker(context, [REFERENCE.backend])
    assert (worker.isolated, said) == (True, ())


def test_a_narrowed_backend_is_still_the_installed_one():
    assert Candidate(at_most(registry.get("two_phase"), 1), {}).is_installed
    assert not Candidate(sleepy(), {}).is_installed
    assert not Candidate(sleepy("two_phase"), {}).is_installed


def test_a_folder_for_temporary_files_that_is_none_is_said_with_the_cure(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(UnavailableError, match=r"temporary files cannot be written \(.*none.*set TMPDIR"):
        ProcessWorker()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("failed writing file\nframe")])
def test_inputs_that_cannot_be_handed_over_are_said_with_the_cure(context, monkeypatch, error):
    def save(*_):
        raise error

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(UnavailableError, match=r"temporary files cannot be written \(.*\): free space"):
        ProcessWorker(context)
