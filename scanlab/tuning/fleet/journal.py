"""Studies in a journal file: opened, repaired after a crash, and never mistaken for a file of another program."""

from __future__ import annotations

import itertools
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
        is_ours: Whether it lies in a results folder under scanlab's own name, where one line of a journal is enough to
            repair it. Any other file must begin as a journal.

    Returns:
        The storage, and a notice for every repair.

    Raises:
        InputError: If the file belongs to another program; it stays untouched.
        OSError: If it cannot be read or written.
    """
    refuse_foreign_file(path, is_ours)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalFileOpenLock(str(path)) if fcntl is None else KernelLock(path.with_name(path.name + ".flock"))
    notices: list[str] = []
    with _holding(lock):
        aside = _unused_name(path)
        cut = _cut_unfinished_line(path, aside)
        if cut:
            notices.append(f"{path}: {len(cut)} bytes of an unfinished last line moved to {aside.name}")
        try:
            for line in path.read_bytes().splitlines()[-1:] if path.exists() else ():
                json.loads(line)  # optuna takes a damaged last line for one that is still being written
            return JournalStorage(JournalFile(path, lock)), tuple(notices)
        except DAMAGE:
            aside = _unused_name(path)
            path.replace(aside)
            notices.append(f"{path}: damaged, moved to {aside.name}; the studies are rebuilt from the records")
            return JournalStorage(JournalFile(path, lock)), tuple(notices)


def refuse_foreign_file(path: Path, is_ours: bool = False) -> None:
    """Raise InputError if `path` exists and is not a journal, by its first line; an empty file may become one.

    A file of ours may be a journal whose first line is damaged, or was cut while it was written.
    """
    if not path.exists():
        return
    if is_ours and path.is_file():
        if not _was_a_journal(path):
            raise InputError(
                f"{path}: this file is not a journal of studies and was left as it is. Move it away, or name another"
                " file by --storage."
            )
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


def _was_a_journal(path: Path) -> bool:
    """Return whether a line of the file begins as those of a journal do, or it is empty or the rest of one."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        file.seek(0)
        if any(MARK.match(line) for line in file):
            return True
    # A power loss may leave zeros where a line was being written.
    rest = head.rstrip(b"\0")
    return any((b'{"op_code":%d,"worker_id":"' % code).startswith(rest) for code in range(100))


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


def _unused_name(path: Path) -> Path:
    """Return the name of a file beside `path` that does not exist, for what is moved out of it."""
    stem = f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    names = (path.with_name(f"{stem}-{number}" if number else stem) for number in itertools.count())
    return next(name for name in names if not os.path.lexists(name))


def _cut_unfinished_line(path: Path, aside: Path | None = None) -> bytes:
    """Cut off and return the text after the last line end of the file, once it is kept in `aside`."""
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
            if aside is not None:
                aside.write_bytes(unfinished)
            file.truncate(size - len(unfinished))
        return unfinished
