"""Where studies live: a journal file for one machine, a database or its gRPC proxy for many."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.storages.journal._file import BaseJournalFileLock  # not exported, though JournalFileBackend takes one

from scanlab.errors import ResultsError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

# Workers that open an empty database at the same moment all create its tables, and all but one fail.
MOST_OPENINGS = 5
# How long a worker waits for another's write to SQLite, and for a proxy to answer.
PATIENCE_S = 30
# What a database is reached with where its URL names no driver: the one that scanlab[fleet] installs.
DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}


def open_storage(storage: str | None, folder: Path) -> tuple[BaseStorage, tuple[str, ...]]:
    """The storage of the studies, and what had to be repaired.

    storage  None for a journal in `folder`; the path of a journal; a database URL (sqlite:///file,
             postgresql://user@host/name); or grpc://host:port, optuna's proxy of a database
    Raises ResultsError where it cannot be opened.
    """
    place = str(folder) if storage is None else mask_password(storage)
    try:
        with quiet_optuna():
            if storage is not None and storage.startswith("grpc://"):
                return _proxy(storage), ()
            if storage is not None and "://" in storage:
                return _database(storage), ()
            path = folder / "studies.journal" if storage is None else Path(storage)
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = (
                JournalFileOpenLock(str(path)) if fcntl is None else _KernelLock(path.with_name(path.name + ".flock"))
            )
            notices = repair_journal(path, lock)
            return JournalStorage(JournalFileBackend(str(path), lock_obj=lock)), notices
    except ResultsError:
        raise
    except ImportError as error:
        raise ResultsError(
            f"--storage {place}: {error}. Install what reaches it: pip install 'scanlab[fleet]' for PostgreSQL,"
            " pip install grpcio protobuf for a proxy, and for another database its driver."
        ) from error
    except Exception as error:  # each database driver has errors of its own
        raise ResultsError(
            f"--storage {place}: {type(error).__name__}: {error}."
            " Name a writable journal file, or a database URL whose driver is installed and whose server answers."
        ) from error


def mask_password(storage: str) -> str:
    """`storage` as it may be printed: without the password that a URL may hold."""
    password = urlsplit(storage).password if "://" in storage else None
    return storage if password is None else storage.replace(f":{password}@", ":***@", 1)


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep optuna from announcing studies, and from warning that what is used here is young."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn the loss of a storage within the block into a ResultsError."""
    proxy = sys.modules.get("grpc")
    lost = (optuna.exceptions.StorageInternalError, *((proxy.RpcError,) if proxy is not None else ()))
    try:
        yield
    except lost as error:
        cause = error.__cause__ or error
        raise ResultsError(
            f"the storage of the studies was lost: {type(cause).__name__}: {str(cause).splitlines()[0]}."
            " Everything measured is in the results folder; run the same command again when it is back."
        ) from error


def _database(url: str) -> BaseStorage:
    # Here and not above: most studies live in a journal, and optuna loads it only for a database too.
    from sqlalchemy.exc import DBAPIError

    scheme, _, rest = url.partition("://")
    # Connections that the server closed while something was measured are opened again.
    options: dict[str, Any] = {"pool_pre_ping": True}
    if scheme.startswith("sqlite"):
        options["connect_args"] = {"timeout": PATIENCE_S}
    for opening in range(MOST_OPENINGS):
        try:
            return optuna.storages.get_storage(RDBStorage(f"{DRIVERS.get(scheme, scheme)}://{rest}", options))
        except (DBAPIError, optuna.exceptions.StorageInternalError):
            if opening == MOST_OPENINGS - 1:
                raise
            time.sleep(random.uniform(0.1, 0.5))
    raise AssertionError("unreachable: the last opening returns or raises")


def _proxy(url: str) -> BaseStorage:
    parts = urlsplit(url)
    if parts.hostname is None or parts.port is None:
        raise ResultsError(
            f"--storage {url}: a proxy is named as grpc://HOST:PORT, for example grpc://localhost:13000."
        )
    for module in ("grpc", "google.protobuf"):
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            raise ImportError(f"the Python package {module} is missing")
    storage = GrpcStorageProxy(host=parts.hostname, port=parts.port)
    storage.wait_server_ready(timeout=PATIENCE_S)
    return storage


class _KernelLock(BaseJournalFileLock):
    """A lock on the journal that the kernel releases when its holder dies; optuna's own outlives it by 30 s."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def acquire(self) -> bool:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        assert self._file is not None
        os.close(self._file)
        self._file = None


def repair_journal(path: Path, lock: BaseJournalFileLock) -> tuple[str, ...]:
    """Cut off what a crash left of the last line of a journal, which would swallow the next one.

    What is cut off is copied aside. A journal with damage further up cannot be read by anyone: it is moved
    aside whole, and the studies are rebuilt from the records.
    """
    if not path.exists():
        return ()
    lock.acquire()
    try:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        if not all(_is_json(line) for line in whole.splitlines()):
            path.rename(aside)
            return (f"{path}: damaged, moved to {aside.name}; the studies are rebuilt from the records",)
        if len(whole) == len(content):
            return ()
        aside.write_bytes(content[len(whole) :])
        os.truncate(path, len(whole))
        return (f"{path}: {len(content) - len(whole)} bytes of an unfinished last line moved to {aside.name}",)
    finally:
        lock.release()


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
