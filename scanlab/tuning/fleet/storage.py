"""Storages of studies: a journal file for one machine, a database or its gRPC proxy for many."""

from __future__ import annotations

import importlib.util
import json
import random
import sqlite3
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage
from optuna.trial import FrozenTrial

from scanlab.errors import InputError, ResultsError, UnavailableError
from scanlab.tuning.fleet.journal import open_journal
from scanlab.tuning.fleet.storage_name import StorageName, hide_secrets

# Workers that open an empty database at the same moment all create its tables, and all but one fail.
MAX_OPENINGS = 5
# Some of optuna's tables, by which its databases are known.
TABLES = {"studies", "trials", "version_info"}
# How long a worker waits for another's write to SQLite, and for a proxy to answer.
TIMEOUT_S = 30
# The driver of a database whose URL names none: the one that scanlab[fleet] installs.
DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}


def open_storage(storage: str | None, folder: Path, must_exist: bool = False) -> tuple[BaseStorage, tuple[str, ...]]:
    """Open the storage of the studies.

    Args:
        storage: None for a journal in `folder`; the path of a journal; a database URL (sqlite:///file,
            postgresql://user@host/name); or grpc://host:port, optuna's proxy of a database.
        folder: The results folder.
        must_exist: Refuse to create a file, for readers.

    Returns:
        The storage, and a notice for everything that had to be repaired.

    Raises:
        InputError: If the name is mistyped, or names a file of another program, which stays untouched.
        ResultsError: If the storage cannot be opened.
        UnavailableError: If its driver is not installed.
    """
    own = StorageName(str(folder / "studies.journal"), "journal")
    name = own if storage is None else StorageName.parse(storage)
    if name.file is not None:
        if must_exist and not name.file.exists():
            raise InputError(
                f"--storage {name.masked}: there is no such file; name the one that the machines tune with."
            )
        if name.kind == "database":
            _refuse_foreign_database(name, name.file)
    try:
        with quiet_optuna():
            if name.kind == "proxy":
                return _proxy(name), ()
            if name.kind == "database":
                return _database(name), ()
            return open_journal(Path(name.text), is_ours=storage is None)
    except ImportError as error:
        raise UnavailableError(
            f"--storage {name.masked}: {str(error).rstrip('.')}. Install its driver:"
            " pip install 'scanlab[fleet]' for PostgreSQL, pip install grpcio protobuf for a proxy, and for another"
            " database its driver."
        ) from error
    except _failures() as error:
        raise ResultsError(
            f"--storage {name.masked}: {type(error).__name__}: {hide_secrets(str(error), name.text)}."
            " Name a writable journal file, or a database URL whose driver is installed and whose server answers."
        ) from None  # the error of a driver may hold the password


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep optuna from announcing studies, and from warning that some of its interfaces are experimental."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn the loss of a storage within the block into a ResultsError."""
    proxy = sys.modules.get("grpc")
    lost = (
        optuna.exceptions.StorageInternalError,
        json.JSONDecodeError,
        OSError,
        *((proxy.RpcError,) if proxy is not None else ()),
    )
    try:
        yield
    except lost as error:
        cause = error.__cause__ or error
        raise ResultsError(
            f"the storage of the studies was lost: {type(cause).__name__}: {str(cause).partition(chr(10))[0]}."
            " Everything measured is in the results folder; run the same command again when it is back."
        ) from error


def trials_of(storage: BaseStorage, study: int) -> list[FrozenTrial]:
    """Return the trials of a study.

    Raises:
        ResultsError: The database holds something that optuna never wrote.
    """
    try:
        return storage.get_all_trials(study, deepcopy=False)
    except (LookupError, TypeError, ValueError) as error:
        raise ResultsError(
            f"the storage holds a trial that cannot be read: {type(error).__name__}: {error}. Name another one;"
            " everything measured is in the results folders."
        ) from error


def _failures() -> tuple[type[Exception], ...]:
    """Return the errors of opening a storage; each driver of a database wraps its errors in SQLAlchemy's."""
    database, proxy = sys.modules.get("sqlalchemy.exc"), sys.modules.get("grpc")
    return (
        optuna.exceptions.OptunaError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        *((database.SQLAlchemyError,) if database is not None else ()),
        *((proxy.RpcError, proxy.FutureTimeoutError) if proxy is not None else ()),
    )


def _refuse_foreign_database(name: StorageName, path: Path) -> None:
    """Raise InputError if an SQLite file holds tables and none of optuna's; it stays untouched."""
    if not path.exists():
        return
    if not path.is_file():  # SQLite would wait for the other end of a pipe
        what = "a folder" if path.is_dir() else "not a regular file"
        raise InputError(f"--storage {name.masked}: {path} is {what}; name a file, as sqlite:///studies.db.")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=TIMEOUT_S)) as database:
            tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        raise InputError(
            f"--storage {name.masked}: {path} cannot be read as an SQLite database ({error}) and was left as it is."
            " Name another file."
        ) from error
    if tables and not tables >= TABLES:
        raise InputError(
            f"--storage {name.masked}: this is a database of another program, with the tables"
            f" {', '.join(sorted(tables)[:5])}, and was left as it is. Name another file."
        )


def _database(name: StorageName) -> BaseStorage:
    # Here and not above: most studies live in a journal, and optuna loads it only for a database too.
    from sqlalchemy.exc import DBAPIError

    scheme, _, rest = name.text.partition("://")
    # Connections that the server closed while something was measured are opened again.
    options: dict[str, Any] = {"pool_pre_ping": True}
    if scheme.startswith("sqlite"):
        options["connect_args"] = {"timeout": TIMEOUT_S}
    # optuna takes the URL for a template of str.format.
    url = f"{DRIVERS.get(scheme, scheme)}://{rest}".replace("{", "{{").replace("}", "}}")
    for opening in range(MAX_OPENINGS):
        try:
            return optuna.storages.get_storage(RDBStorage(url, options))
        except (DBAPIError, optuna.exceptions.StorageInternalError):
            if opening == MAX_OPENINGS - 1:
                raise
            time.sleep(random.uniform(0.1, 0.5))
    raise AssertionError("unreachable: the last opening returns or raises")


def _proxy(name: StorageName) -> BaseStorage:
    for module in ("grpc", "google.protobuf"):
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            raise ImportError(f"the Python package {module} is missing")
    assert name.url is not None
    assert name.url.hostname is not None
    assert name.url.port is not None
    storage = GrpcStorageProxy(host=name.url.hostname, port=name.url.port)
    storage.wait_server_ready(timeout=TIMEOUT_S)
    return storage
