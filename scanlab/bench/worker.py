"""One process's part of a race: rounds of interleaved blocks, here or in a fresh process.

Two runs of one program differ by more than two rounds of one run do (where memory lands, which CPU, which
clock), so that a race is held in several processes. Run as a program this module is such a process.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scanlab.bench.prove import Failure, Proven, Setting, guarded, prove
from scanlab.bench.samples import Block
from scanlab.bench.timing import Arm, peak_bytes, take_round
from scanlab.contract import registry
from scanlab.contract.backend import Backend
from scanlab.contract.space import Config
from scanlab.contract.verify import Verdict
from scanlab.errors import RejectedError, UnknownBackendError

FEWEST_ROUNDS = 8
MOST_ROUNDS = 60


@dataclass(frozen=True)
class Entrant:
    """A backend and a configuration that take part in a race."""

    backend: Backend
    config: Config


@dataclass(frozen=True)
class Lane:
    """What one entrant did in one heat: its blocks and what belongs to them, or why it failed."""

    blocks: tuple[Block, ...] = ()
    verdict: Verdict | None = None
    calls: int = 0
    build_ms: float = 0.0
    first_call_ms: float = 0.0
    peak_bytes: int | None = None
    failure: Failure | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Lane:
        """The lane that `asdict` wrote."""
        verdict, failure = values["verdict"], values["failure"]
        if failure is not None:
            failure = Failure(**{**failure, "verdict": failure["verdict"] and Verdict.from_json(failure["verdict"])})
        return cls(
            **{
                **values,
                "blocks": tuple(Block.from_json(block) for block in values["blocks"]),
                "verdict": verdict and Verdict.from_json(verdict),
                "failure": failure,
            }
        )


@dataclass(frozen=True)
class Heat:
    """What the entrants did in one process.

    lanes         one for each entrant, in their order
    doubled       the entrant that ran twice, -1 where none did
    twin          the blocks of its second run
    anchor_calls  calls in one sample of the anchor
    """

    lanes: tuple[Lane, ...]
    doubled: int
    twin: tuple[Block, ...]
    anchor_calls: int
    rounds: int

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Heat:
        """The heat that `asdict` wrote."""
        lanes = tuple(Lane.from_json(lane) for lane in values["lanes"])
        return cls(**{**values, "lanes": lanes, "twin": tuple(Block.from_json(block) for block in values["twin"])})


def run_heat(
    entrants: Sequence[Entrant | Proven],
    anchor: Entrant | Proven,
    setting: Setting,
    deadline: float,
    process: int = 0,
    most_rounds: int = MOST_ROUNDS,
    decided: Callable[[Heat], bool] = lambda heat: False,
    on_round: Callable[[int], None] = lambda number: None,
) -> Heat:
    """Time `entrants` beside `anchor` in this process until `decided`, or until `deadline` of time.monotonic().

    Every entrant is proved first (a Proven one has been). Entrants that take long run in fewer rounds, always
    beside the anchor; the first round has all of them, whatever the deadline. Raises RejectedError where the
    anchor cannot run.
    """
    yardstick = anchor if isinstance(anchor, Proven) else prove(anchor.backend, anchor.config, setting)
    if isinstance(yardstick, Failure):
        raise RejectedError(f"the anchor cannot run: {yardstick.reason}")
    anchor_arm = yardstick.arm(setting)
    runners = [_runner(entrant, setting) for entrant in entrants]
    _set_pace(runners, anchor_arm, deadline, most_rounds)
    rng = random.Random(f"{setting.seed} {process}")
    twin = _twin(runners, setting)
    number, slowness, undisturbed_rounds = 0, 1.0, 0
    while undisturbed_rounds < most_rounds and number < 2 * most_rounds:
        due = [runner for runner in runners if runner.arm is not None and number % runner.every == 0]
        due += [twin] if twin is not None else []
        if not due:
            break
        arms = [runner.arm for runner in due if runner.arm is not None]
        expected_s = sum(arm.cost_s for arm in (*arms, anchor_arm))
        started = time.monotonic()
        if number and started + slowness * expected_s > deadline:
            break
        blocks = guarded(partial(take_round, arms, anchor_arm, rng, number, process))
        if isinstance(blocks, Failure):
            _disqualify(due, blocks)
            twin = _twin(runners, setting)
            continue
        slowness = max(1.0, (time.monotonic() - started) / expected_s)
        for runner, block in zip(due, blocks, strict=True):
            runner.blocks.append(block)
        undisturbed_rounds += blocks[0].disturbed is None
        number += 1
        on_round(number)
        if number >= FEWEST_ROUNDS and decided(_heat(runners, twin, anchor_arm, number)):
            break
    for runner in runners:
        runner.weigh()
    return _heat(runners, twin, anchor_arm, number)


@dataclass
class _Runner:
    """An entrant on its way; `arm` is None once it failed."""

    proven: Proven | Failure
    arm: Arm | None = None
    every: int = 1
    blocks: list[Block] = field(default_factory=list)
    peak_bytes: int | None = None

    def fail(self, failure: Failure) -> None:
        self.proven, self.arm = failure, None

    def weigh(self) -> None:
        """Measure its memory, which is no part of any round."""
        if self.arm is not None:
            peak = guarded(partial(peak_bytes, self.arm.call, self.arm.device, self.arm.threads))
            if isinstance(peak, Failure):
                self.fail(peak)
            else:
                self.peak_bytes = peak

    def lane(self) -> Lane:
        if isinstance(self.proven, Failure) or self.arm is None:
            return Lane(failure=self.proven if isinstance(self.proven, Failure) else None)
        proven = self.proven
        return Lane(
            tuple(self.blocks), proven.verdict, self.arm.calls, proven.build_ms, proven.first_call_ms, self.peak_bytes
        )


def _runner(entrant: Entrant | Proven, setting: Setting) -> _Runner:
    proven = entrant if isinstance(entrant, Proven) else prove(entrant.backend, entrant.config, setting)
    arm = proven if isinstance(proven, Failure) else guarded(partial(proven.arm, setting))
    return _Runner(arm) if isinstance(arm, Failure) else _Runner(proven, arm)


def _twin(runners: Sequence[_Runner], setting: Setting) -> _Runner | None:
    """The fastest entrant once more: the one that others must be told apart from."""
    while ready := [
        (runner.arm.cost_s / (runner.arm.calls * runner.arm.samples), runner) for runner in runners if runner.arm
    ]:
        _, fastest = min(ready, key=lambda one: one[0])
        assert isinstance(fastest.proven, Proven)
        arm = guarded(partial(fastest.proven.arm, setting))
        if not isinstance(arm, Failure):
            return _Runner(fastest.proven, arm)
        fastest.fail(arm)
    return None


def _heat(runners: Sequence[_Runner], twin: _Runner | None, anchor: Arm, rounds: int) -> Heat:
    doubled = next((index for index, runner in enumerate(runners) if twin and runner.proven is twin.proven), -1)
    blocks = tuple(twin.blocks) if twin is not None and doubled >= 0 else ()
    return Heat(tuple(runner.lane() for runner in runners), doubled, blocks, anchor.calls, rounds)


def _set_pace(runners: Sequence[_Runner], anchor: Arm, deadline: float, most_rounds: int) -> None:
    """Let entrants that take much longer than the others run in fewer rounds, but in enough of them."""
    paced = [(runner, runner.arm.cost_s) for runner in runners if runner.arm is not None]
    if not paced:
        return
    usual_s = max(anchor.cost_s, statistics.median(cost_s for _, cost_s in paced))
    for runner, cost_s in paced:
        runner.every = max(1, round(cost_s / (4 * usual_s)))
    round_s = anchor.cost_s + sum(cost_s / runner.every for runner, cost_s in paced)
    rounds = min(most_rounds, max(0.0, deadline - time.monotonic()) / round_s)
    for runner, _ in paced:
        runner.every = max(1, min(runner.every, int(rounds / FEWEST_ROUNDS)))


def _disqualify(due: Sequence[_Runner], failure: Failure) -> None:
    """Call each entrant once and take those out that fail; all of them where none does by itself."""
    alone = [(runner.proven, guarded(runner.arm.call)) for runner in due if runner.arm is not None]
    guilty = [(proven, outcome) for proven, outcome in alone if isinstance(outcome, Failure)]
    for proven, reason in guilty or [(proven, failure) for proven, _ in alone]:
        for runner in due:  # the twin goes with its double
            if runner.proven is proven:
                runner.fail(reason)


def is_installed(backend: Backend) -> bool:
    """Whether a fresh process finds this backend by its name, though perhaps with a wider space."""
    try:
        return registry.get(backend.name).make is backend.make
    except UnknownBackendError:
        return False


def run_fresh_heat(
    entrants: Sequence[Entrant],
    anchor: Entrant,
    setting: Setting,
    deadline: float,
    killed_at: float,
    process: int,
    most_rounds: int = MOST_ROUNDS,
    on_round: Callable[[int], None] = lambda number: None,
) -> Heat | str:
    """`run_heat` in a process of its own, which builds and proves everything anew, or why that process gave nothing.

    The backends must be installed (`is_installed`). A process that still runs at `killed_at` is killed.
    """
    with tempfile.TemporaryDirectory(prefix="scanlab-heat-") as folder:
        request = {
            "setting": setting,
            "entrants": [(entrant.backend.name, dict(entrant.config)) for entrant in entrants],
            "anchor": (anchor.backend.name, dict(anchor.config)),
            # Another process has another monotonic clock on some systems.
            "deadline": time.time() + (deadline - time.monotonic()),
            "process": process,
            "most_rounds": most_rounds,
        }
        torch.save(request, Path(folder) / "request")
        command = [sys.executable, "-m", __name__, folder]
        said = Path(folder) / "said"
        with (
            said.open("w") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as worker,
        ):
            watchdog = threading.Timer(max(0.0, killed_at - time.monotonic()), worker.kill)
            watchdog.start()
            try:
                assert worker.stdout is not None
                for line in worker.stdout:
                    if line.startswith("round "):
                        on_round(int(line.split()[1]))
                worker.wait()
            except BaseException:  # interrupted, or out of time: the process must not go on
                worker.kill()
                raise
            finally:
                watchdog.cancel()
        if worker.returncode != 0 and time.monotonic() >= killed_at:
            return "it still ran when its time was over, and was stopped"
        if worker.returncode != 0:
            return f"exit status {worker.returncode}, {(said.read_text().strip() or 'without a word').splitlines()[-1]}"
        return Heat.from_json(json.loads((Path(folder) / "heat").read_text()))


def _main(folder: Path) -> None:
    request = torch.load(folder / "request", weights_only=False)
    entrants = [Entrant(registry.get(name), config) for name, config in request["entrants"]]
    name, config = request["anchor"]
    heat = run_heat(
        entrants,
        Entrant(registry.get(name), config),
        request["setting"],
        time.monotonic() + (request["deadline"] - time.time()),
        request["process"],
        request["most_rounds"],
        on_round=lambda number: print(f"round {number}", flush=True),
    )
    (folder / "heat").write_text(json.dumps(asdict(heat)))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
