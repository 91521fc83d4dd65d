"""Studies in a journal file: opened, repaired after a crash, and never mistaken for a file of another program."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.storages.journal._file import BaseJournalFileLock  # not exported, though JournalFileBackend takes one

from scanlab.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

# Every line of a journal begins like this.
MARK = re.compile(rb'\{"op_code":\d{1,2},"worker_id":"')
HEAD_BYTES = 64
SQLITE_MARK = b"SQLite format 3\0"
# Errors of replaying a damaged journal: optuna takes every line for one that it wrote.
DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    optuna.exceptions.OptunaError,
)


def open_journal(path: Path, is_ours: bool) -> tuple[JournalStorage, tuple[str, ...]]:
    """Open the journal in `path`, created if there is none, and repair the damage of a crash.

    An unfinished last line is cut off and kept aside. A journal that is damaged further up is moved aside whole: the
    studies are rebuilt from the records.

    Args:
        path: The file.
        is_ours: Whether it lies in a results folder under scanlab's own name. Any other file must begin as a journal.

    Returns:
        The storage, and a notice for every repair.

    Raises:
        InputError: If the file belongs to another program; it stays untouched.
        OSError: If it cannot be read or written.
    """
    if not is_ours:
        refuse_foreign_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalFileOpenLock(str(path)) if fcntl is None else KernelLock(path.with_name(path.name + ".flock"))
    notices: list[str] = []
    with _holding(lock):
        aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        cut = _cut_unfinished_line(path)
        if cut:
            aside.write_bytes(cut)
            notices.append(f"{path}: {len(cut)} bytes of an unfinished last line moved to {aside.name}")
        try:
            for line in path.read_bytes().splitlines()[-1:] if path.exists() else ():
                json.loads(line)  # optuna takes a damaged last line for one that is still being written
            return JournalStorage(JournalFile(path, lock)), tuple(notices)
        except DAMAGE:
            path.replace(aside)
            notices.append(f"{path}: damaged, moved to {aside.name}; the studies are rebuilt from the records")
            return JournalStorage(JournalFile(path, lock)), tuple(notices)


def refuse_foreign_file(path: Path) -> None:
    """Raise InputError if `path` exists and is not a journal, by its first line; an empty file may become one."""
    if not path.exists():
        return
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not a regular file"
        raise InputError(f"--storage {path}: this is {what}; name a file, such as {path / 'studies.journal'}.")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(SQLITE_MARK):
        raise InputError(f"--storage {path}: this is an SQLite database; you probably mean sqlite:///{path}.")
    if head and not MARK.match(head):
        raise InputError(
            f"--storage {path}: this file is not a journal of studies and was left as it is. Name a new file, or the"
            " URL of a database: sqlite:///FILE or postgresql://USER@HOST/NAME."
        )


class JournalFile(JournalFileBackend):
    """optuna's journal file; a line never joins the rest of one that a crash or a full disk cut."""

    def __init__(self, path: Path, lock: BaseJournalFileLock) -> None:
        super().__init__(str(path), lock_obj=lock)
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append whole lines, or none: an incomplete write is removed."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with _holding(self._lock):
            _cut_unfinished_line(self._path)
            size = self._path.stat().st_size if self._path.exists() else 0
            try:
                with self._path.open("ab") as file:
                    file.write(lines.encode())
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                os.truncate(self._path, size)
                raise


class KernelLock(BaseJournalFileLock):
    """A lock that the kernel releases when its holder dies; optuna's own outlives its holder by 30 s."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def acquire(self) -> bool:
        """Wait for the lock and take it."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(file, fcntl.LOCK_EX)
        self._file = file
        return True

    def release(self) -> None:
        """Release the lock."""
        assert self._file is not None
        os.close(self._file)
        self._file = None


@contextmanager
def _holding(lock: BaseJournalFileLock) -> Iterator[None]:
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _cut_unfinished_line(path: Path) -> bytes:
    """Cut off and return the text after the last line end of the file."""
    if not path.exists():
        return b""
    with path.open("rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        tail = b""
        while end and b"\n" not in tail:
            start = max(0, end - 4096)
            file.seek(start)
            tail = file.read(end - start) + tail
            end = start
        unfinished = tail[tail.rfind(b"\n") + 1 :]
        if unfinished:
            file.truncate(size - len(unfinished))
        return unfinished
