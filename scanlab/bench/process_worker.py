"""Worker in a process of its own, which may crash, hang or be killed.

The process runs this module and answers requests over pipes. It is killed, with the compilers that it started, when a
request takes longer than its timeout; a candidate during which it ended is reported as crashed, and the next request
starts another process.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import torch

from scanlab.bench import system_state
from scanlab.bench.context import BenchmarkContext, Candidate
from scanlab.bench.samples import Block
from scanlab.bench.worker import CandidateFailedError, Evaluation, LocalWorker, Worker
from scanlab.contract.backend import Backend
from scanlab.errors import ScanlabError, UnavailableError

# A build may compile for minutes on a slow machine; one that takes longer than this is stuck.
BUILD_TIMEOUT_S = 900.0
# Limit of a round, or of a measurement of memory, beyond its calibrated time: other processes may slow it down.
MIN_TIMEOUT_S = 30.0
TIMEOUT_FACTOR = 20.0


def open_worker(
    context: BenchmarkContext, backends: Iterable[Backend], started: ProcessWorker | None = None
) -> tuple[Worker, tuple[str, ...]]:
    """Return a worker for `backends`, and a notice where it is not a process of its own.

    Args:
        context: Problem and inputs.
        backends: Backends that the worker has to find.
        started: Worker without a context, which takes this one, in place of a new worker.
    """
    not_installed = sorted({each.name for each in backends if not Candidate(each, each.space.defaults).is_installed})
    if not not_installed:
        if started is None:
            return ProcessWorker(context), ()
        started.load(context)
        return started, ()
    names = ", ".join(not_installed)
    return LocalWorker(context), (
        f"everything ran in this process, because another one does not find {names} by name: a candidate that crashes"
        " or hangs ends the tuning, and there is no hold-out comparison in fresh processes",
    )


class ProcessWorker:
    """Worker in a process of its own, started on demand and started again after it died.

    Args:
        context: Problem and inputs; without them the process starts at once, so that it imports torch while the caller
            makes them for `load`.
        timeout_s: Limit of building, verifying and calibrating one candidate.
    """

    isolated = True

    def __init__(self, context: BenchmarkContext | None = None, timeout_s: float = BUILD_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        with _writing_temporary_files():
            self._folder = tempfile.TemporaryDirectory(prefix="scanlab-worker-")
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0
        self.start_s = 0.0
        self._evaluations: dict[Candidate, Evaluation] = {}
        self._in_process: set[Candidate] = set()
        self._timed_out = False
        self._is_ready = False
        if context is None:
            self._process = self._start()
        else:
            self._hand_over(context)

    def verify(self, candidate: Candidate) -> Evaluation:
        return self._evaluated("verify", candidate)

    def _evaluated(self, method: str, candidate: Candidate) -> Evaluation:
        try:
            evaluation = self._ask(method, candidate, timeout_s=self._timeout_s)
        except _WorkerDiedError as death:
            return Evaluation("crashed", str(death))
        assert isinstance(evaluation, Evaluation)
        return evaluation

    def prepare(self, candidate: Candidate) -> Evaluation:
        if candidate in self._in_process:
            return self._evaluations[candidate]
        evaluation = self._evaluated("prepare", candidate)
        if evaluation.state == "ok":
            self._evaluations[candidate] = evaluation
            self._in_process.add(candidate)
        return evaluation

    def take_round(self, candidates: Sequence[Candidate], baseline: Candidate, number: int) -> tuple[Block, ...]:
        everyone = (*candidates, baseline)
        for each in everyone:
            self._prepare_again(each)
        expected_s = sum(self._evaluations[each].block_s for each in everyone)
        timeout_s = MIN_TIMEOUT_S + TIMEOUT_FACTOR * expected_s
        try:
            blocks = self._ask("take_round", list(candidates), baseline, number, timeout_s=timeout_s)
        except _WorkerDiedError as death:
            position = (self._running[0] - 1) % len(everyone)
            raise CandidateFailedError(everyone[position], str(death)) from death
        assert isinstance(blocks, tuple)
        return blocks

    def peak_bytes(self, candidate: Candidate) -> int | None:
        self._prepare_again(candidate)
        timeout_s = MIN_TIMEOUT_S + TIMEOUT_FACTOR * self._evaluations[candidate].block_s
        try:
            peak = self._ask("peak_bytes", candidate, timeout_s=timeout_s)
        except _WorkerDiedError as death:
            raise CandidateFailedError(candidate, str(death)) from death
        assert peak is None or isinstance(peak, int)
        return peak

    def release(self, candidates: Iterable[Candidate]) -> None:
        held = [each for each in candidates if each in self._in_process]
        self._in_process.difference_update(held)
        if held and self._process is not None:
            with suppress(_WorkerDiedError):
                self._ask("release", held, timeout_s=MIN_TIMEOUT_S)

    def load(self, context: BenchmarkContext) -> None:
        self._hand_over(context)
        self._evaluations.clear()
        self._in_process.clear()
        if self._is_ready:  # a process that is not loads it when it becomes so
            try:
                self._ask("load", timeout_s=self._timeout_s)
            except _WorkerDiedError as death:
                raise ScanlabError(f"the inputs of {context.problem.key} could not be loaded: {death}") from death

    def restart(self, context: BenchmarkContext | None = None) -> None:
        self._end()
        self._evaluations.clear()
        if context is not None:
            self._hand_over(context)

    def disturbance(self, seconds: float) -> str | None:
        return system_state.observe(seconds)

    def close(self) -> None:
        self._end()
        self._folder.cleanup()

    def _prepare_again(self, candidate: Candidate) -> None:
        """Prepare a candidate that the process held when it died."""
        if candidate not in self._in_process:
            evaluation = self.prepare(candidate)
            if evaluation.state != "ok":
                raise CandidateFailedError(candidate, evaluation.reason or evaluation.state)

    def _hand_over(self, context: BenchmarkContext) -> None:
        with _writing_temporary_files():
            torch.save(context, Path(self._folder.name) / "context")

    def _start(self) -> subprocess.Popen[bytes]:
        folder = Path(self._folder.name)
        with _writing_temporary_files():
            (folder / "running").write_bytes(b"\0")
            with (folder / "running").open("r+b") as file:
                self._running = mmap.mmap(file.fileno(), 1)
        with (folder / "stderr").open("wb") as errors:
            # A session of its own: Ctrl-C reaches this process alone, which ends the worker and its compilers.
            process = subprocess.Popen(
                [sys.executable, "-m", "scanlab.bench.process_worker", str(folder), str(self._started)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        self._started += 1
        self._started_at = time.monotonic()
        return process

    def _ask(self, method: str, *arguments: object, timeout_s: float) -> object:
        """Return the reply to a request, of a new process where none runs; raises the errors of `_exchange`."""
        if self._process is None:
            self._process = self._start()
        if not self._is_ready:
            self._exchange(self._process, "ready", (), self._timeout_s)
            self.start_s = time.monotonic() - self._started_at
            self._is_ready = True
        return self._exchange(self._process, method, arguments, timeout_s)

    def _exchange(
        self, process: subprocess.Popen[bytes], method: str, arguments: tuple[object, ...], timeout_s: float
    ) -> object:
        """Send a request and return the reply.

        Raises:
            _WorkerDiedError: The process ended, or was killed after `timeout_s`; the message says which.
            CandidateFailedError: As the worker raised it.
        """
        assert process.stdin is not None
        assert process.stdout is not None
        self._timed_out = False
        timer = threading.Timer(timeout_s, self._time_out)
        timer.start()
        try:
            _send(process.stdin, (method, arguments))
            reply = pickle.loads(_receive(process.stdout))
        except (EOFError, OSError):
            timer.cancel()
            reason = self._last_words(process, timeout_s)
            self._end()
            raise _WorkerDiedError(reason) from None
        except BaseException:  # interrupted in the middle of a reply: the rest of the pipe cannot be read
            self._end()
            raise
        finally:
            timer.cancel()
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _time_out(self) -> None:
        self._timed_out = True
        if self._process is not None:
            _kill(self._process)

    def _last_words(self, process: subprocess.Popen[bytes], timeout_s: float) -> str:
        status = process.wait()
        if self._timed_out:
            return f"it still ran after {timeout_s:.0f} s, and its process was killed"
        if status < 0:
            return f"its process was ended by {signal.Signals(-status).name}"
        lines = (Path(self._folder.name) / "stderr").read_text(errors="replace").strip().splitlines()
        return f"its process ended with exit status {status}: {lines[-1] if lines else 'nothing was printed'}"

    def _end(self) -> None:
        process, self._process = self._process, None
        self._is_ready = False
        self._in_process.clear()
        if process is not None:
            _kill(process)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()


@contextmanager
def _writing_temporary_files() -> Iterator[None]:
    """Raise UnavailableError where a temporary file cannot be written; torch raises RuntimeError on a full disk."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UnavailableError(
            f"temporary files cannot be written ({reason}): free space, or set TMPDIR to a folder of yours with some."
        ) from error


class _WorkerDiedError(Exception):
    """End of the process of a worker; the message says why."""


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill `process` and everything in its process group."""
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _send(stream: IO[bytes], value: object) -> None:
    content = pickle.dumps(value)
    stream.write(struct.pack("<Q", len(content)) + content)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes:
    head = stream.read(8)
    size = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
    content = stream.read(size) if size >= 0 else b""
    if len(content) != size:
        raise EOFError
    return content


def _read_requests(stream: IO[bytes], requests: SimpleQueue[bytes]) -> None:
    """Queue the requests; end this process and its compilers when the parent is gone."""
    while True:
        try:
            requests.put(_receive(stream))
        except (EOFError, OSError):
            if hasattr(os, "killpg"):
                os.killpg(os.getpgrp(), signal.SIGKILL)
            os._exit(1)


def _main(folder: Path, process: int) -> None:
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the output of a compiler or a kernel must not run into the replies
    requests: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read_requests, args=(sys.stdin.buffer, requests), daemon=True).start()
    with (folder / "running").open("r+b") as file:
        running = mmap.mmap(file.fileno(), 1)

    def load() -> BenchmarkContext:
        context: BenchmarkContext = torch.load(folder / "context", weights_only=False)
        return context

    requests.get()  # "ready": the context is there
    worker = LocalWorker(load(), process, running)
    _send(replies, None)
    methods: dict[str, Callable[..., object]] = {
        "load": lambda: worker.load(load()),
        "verify": worker.verify,
        "prepare": worker.prepare,
        "take_round": worker.take_round,
        "peak_bytes": worker.peak_bytes,
        "release": worker.release,
    }
    while True:
        method, arguments = pickle.loads(requests.get())
        try:
            reply: object = methods[method](*arguments)
        except CandidateFailedError as error:
            reply = error
        _send(replies, reply)


if __name__ == "__main__":
    # Under its own name, so that objects pickled here are known there.
    from scanlab.bench.process_worker import _main as main

    main(Path(sys.argv[1]), int(sys.argv[2]))
