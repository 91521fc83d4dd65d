"""`scanlab run`: a script sees what Python shows it, has mamba_ssm, and its problems can be recorded and tuned."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch

from helpers.simulated import tune_simulated
from scanlab.contract.problem import ScanProblem
from scanlab.integrations import mamba_ssm as drop_in
from scanlab.suites import load_suite

SEES = """
import json, sys
print(json.dumps([__name__, sys.argv, sys.path[0], sys.modules["__main__"].__file__]))
"""
SCANS = """
import sys
import torch
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

def scan(length):
    x = torch.rand(1, 6, length)
    B = torch.rand(1, 4, length)
    return selective_scan_fn(x, x, -torch.rand(6, 4), B, B, delta_softplus=True)

for length in map(int, sys.argv[1:]):
    scan(length)
"""
TRAINS = """
import torch
from torch.cuda.amp import GradScaler, autocast
import selective_scan_cuda_oflex

class Scan(torch.autograd.Function):
    @staticmethod
    @torch.cuda.amp.custom_fwd
    def forward(ctx, u, A, B):
        out, x = selective_scan_cuda_oflex.fwd(u, u, A, B, B, None, None, True, 1, True)
        ctx.save_for_backward(u, A, B, x)
        return out

    @staticmethod
    @torch.cuda.amp.custom_bwd
    def backward(ctx, dout):
        u, A, B, x = ctx.saved_tensors
        du, ddelta, dA, dB, dC, *_ = selective_scan_cuda_oflex.bwd(u, u, A, B, B, None, None, dout, x, True, 1)
        return du + ddelta, dA, dB + dC

torch.manual_seed(0)
torch.cuda.set_device(0)
model = torch.nn.Linear(9, 9).cuda()
A = torch.nn.Parameter(-torch.ones(6, 4, device="cuda"))
optimizer = torch.optim.SGD([*model.parameters(), A], lr=0.001)
scaler = GradScaler()
losses = []
for _ in range(2):
    u = torch.linspace(0, 1, 54).view(1, 6, 9).cuda(non_blocking=True)
    B = torch.ones(1, 2, 4, 9).to("cuda:0")
    with autocast():
        loss = (Scan.apply(model(u), A, B) - 1).square().mean()
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    torch.cuda.synchronize()
    losses.append(loss.item())
assert losses[1] < losses[0]
print("trained on", A.device)
"""


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    drop_in.uninstall()


@pytest.fixture
def script(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "script.py").write_text(text)
        return "script.py"

    return write


def test_a_script_sees_what_python_shows_it(run, script, tmp_path):
    before = list(sys.argv), list(sys.path)
    path = script(SEES)
    asked = ("--json", "-m", "--", "--help")
    found = run("run", path, *asked)
    plain = subprocess.run([sys.executable, path, *asked], capture_output=True, text=True, check=True, cwd=tmp_path)
    ours, theirs = json.loads(found.out), json.loads(plain.stdout)
    assert ours[:2] == theirs[:2] == ["__main__", [path, *asked]]
    assert ours[2] == theirs[2] == str(tmp_path)
    assert found.code == 0
    assert before[1] == sys.path


def test_a_module_is_run_as_python_runs_it(run, script, tmp_path):
    script(SEES)
    found = json.loads(run("run", "-m", "script", "--flag").out)
    assert found == ["__main__", [str(tmp_path / "script.py"), "--flag"], str(tmp_path), str(tmp_path / "script.py")]


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("raise SystemExit(7)", 7, ""),
        ("import sys; sys.exit(0)", 0, ""),
        ("", 0, ""),
        ("raise ValueError('mine')", 1, "ValueError: mine"),
        ("from scanlab.errors import ProblemError; raise ProblemError('theirs')", 1, "ProblemError: theirs"),
    ],
)
def test_the_exit_code_is_the_script_s_own(run, script, ending, code, said):
    found = run("run", script(ending))
    assert found.code == code
    assert said in found.err
    assert "run.py" not in found.err  # a traceback begins in the script


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA itself serves here")
def test_a_script_that_asks_for_cuda_trains_on_the_cpu(run, script, monkeypatch):
    monkeypatch.setenv("SCANLAB_BACKEND", "reference")
    found = run("run", "--cpu", script(TRAINS))
    assert (found.code, found.out) == (0, "trained on cpu\n"), found.err
    assert found.err.count("this machine has no CUDA") == 1
    assert run("run", script(TRAINS)).code == 1


def test_processes_that_the_script_starts_are_served(run, script):
    child = "import importlib.metadata as m; assert m.version('mamba_ssm').endswith('+scanlab')"
    found = run("run", script(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"))
    assert found.code == 0, found.err


def test_a_script_that_is_not_there(run):
    found = run("run", "nowhere.py")
    assert found.code == 2
    assert "there is no script nowhere.py" in found.err


def test_the_problems_of_a_script_are_recorded(run, script, monkeypatch, tmp_path):
    monkeypatch.setenv("SCANLAB_BACKEND", "reference")
    found = run("run", "--record", "seen.toml", script(SCANS), "9", "5", "9", "9")
    assert found.code == 0
    assert "2 problems" in found.err
    text = (tmp_path / "seen.toml").read_text()
    assert '"batch=1,dim=6,length=9,state=4' in text
    assert "# 3 calls" in text
    assert "4 scans" in text
    problems: Any = [case.problem for case in load_suite("seen.toml:captured")]
    assert {problem.length for problem in problems} == {5, 9}


@pytest.mark.parametrize("name", ['[bold] quote" del\x7f \U0001f600.py', "byte\udcff.py"])
def test_a_script_of_any_name_that_changes_its_folder_and_forks_is_recorded(tmp_path, name):
    (tmp_path / "sub").mkdir()
    fork = "import os\nif os.fork() == 0:\n    raise SystemExit(0)\nos.wait()\nos.chdir('sub')\n"
    (tmp_path / name).write_text(SCANS + fork)
    command = [sys.executable, "-m", "scanlab", "run", "--record", "seen.toml", name, "9"]
    environment = {**os.environ, "SCANLAB_BACKEND": "reference"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count(b"wrote seen.toml: 1 problem,") == 1
    problem: Any
    (problem,) = (case.problem for case in load_suite(f"{tmp_path}/seen.toml:captured"))
    assert problem.length == 9
    assert sorted(each.name for each in tmp_path.glob("*.toml*")) == ["seen.toml"]


def test_a_script_that_is_killed_in_a_thread_after_its_main_program_is_recorded(tmp_path):
    threads = """
import os, signal, threading, time
def work():
    time.sleep(0.2)
    scan(11)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=work).start()
"""
    (tmp_path / "script.py").write_text(SCANS + threads)
    command = [sys.executable, "-m", "scanlab", "run", "--record", "seen.toml", "script.py", "9"]
    environment = {**os.environ, "SCANLAB_BACKEND": "reference"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    problems: Any = [case.problem for case in load_suite(f"{tmp_path}/seen.toml:captured")]
    assert {problem.length for problem in problems} == {9, 11}


def test_a_place_that_cannot_be_written_is_refused_before_the_script_runs(run, script):
    found = run("run", "--record", "missing/seen.toml", script("print('ran')"))
    assert (found.code, found.out) == (2, "")
    assert "Name a file in a folder that can" in found.err
    found = run("run", "--record", script("print('ran')"), "script.py")
    assert (found.code, found.out) == (2, "")
    assert "is not a recorded suite and was left as it is" in found.err


def test_a_script_that_calls_no_scan_leaves_no_file_and_says_so(run, script, tmp_path):
    found = run("run", "--record", "seen.toml", script("print('ran')"))
    assert (found.code, found.out) == (0, "ran\n")
    assert "called no scan: seen.toml was not written" in found.err
    assert not (tmp_path / "seen.toml").exists()


def test_tune_captures_a_script_and_tunes_for_its_problems(run, script, monkeypatch):
    monkeypatch.setenv("SCANLAB_PROFILE", "not-yet-written.json")
    quick = partial(tune_simulated, time_ms=lambda each: 1.0 if each.backend.name == "two_phase" else 5.0)
    monkeypatch.setattr("scanlab.cli.tune_problems.tune_problem", quick)
    monkeypatch.setattr("scanlab.cli.tune_problems.MIN_SWEEP_S", 1e9)
    options = ("--backends", "reference two_phase", "--budget", "18s", "--out", "here")
    found = run("tune", "--capture", script(SCANS), *options, "--json", "--", "7")
    assert found.code == 0
    (tuned,) = found.json
    expected = ScanProblem(batch=1, dim=6, length=7, state=4, has_D=False, has_z=False, has_delta_bias=False)
    assert ScanProblem.parse(tuned["winner"]["problem"]) == expected


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        ("raise SystemExit(3)", (), "ended with exit code 3: nothing was tuned"),
        ("pass", (), "asked for no scan"),
        ("pass", ("--suite", "vim-tiny"), "leave --problem, --suite and --image out"),
    ],
)
def test_what_cannot_be_captured_is_refused(run, script, text, arguments, said):
    found = run("tune", "--capture", script(text), "--trials", "1", "--out", "here", *arguments)
    assert found.code == 2
    assert said in found.err
    assert "name it with --capture" in run("tune", "9").err
