"""A PostgreSQL server of a test's own, on loopback, as a user who is not root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEBIAN = Path("/usr/lib/postgresql")
UNPRIVILEGED = "nobody"
START_S = 30.0


def missing() -> str | None:
    """Return why no server can be started here, or None."""
    if _programs() is None:
        return f"no initdb and postgres on the path or under {DEBIAN}: install postgresql"
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        return "postgres does not run as root, and there is no setpriv (util-linux) to run it as somebody else"
    return None


@contextmanager
def server() -> Iterator[str]:
    """The URL of a database on a server that runs within the block."""
    programs = _programs()
    assert programs is not None
    # Not a folder of pytest's: only its owner may look into those, and that is root where tests run as root.
    with tempfile.TemporaryDirectory(prefix="scanlab-postgres-", ignore_cleanup_errors=True) as folder:
        as_user: list[str] = []
        if os.geteuid() == 0:
            user = pwd.getpwnam(UNPRIVILEGED)
            os.chown(folder, user.pw_uid, user.pw_gid)
            as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--"]
        data = f"{folder}/data"
        made = subprocess.run(
            [*as_user, str(programs / "initdb"), "-D", data, "-U", "scanlab", "-A", "trust", "--no-sync"],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
        )
        assert made.returncode == 0, made.stderr
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        options = ["-h", "127.0.0.1", "-p", str(port), "-k", folder, "-F"]
        with subprocess.Popen(
            [*as_user, str(programs / "postgres"), "-D", data, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
        ) as running:
            try:
                _await(port, running)
                yield f"postgresql://scanlab@127.0.0.1:{port}/postgres"
            finally:
                running.send_signal(signal.SIGINT)


def _programs() -> Path | None:
    found = shutil.which("postgres")
    folders = [Path(found).resolve().parent] if found else sorted(DEBIAN.glob("*/bin"), reverse=True)
    return next((each for each in folders if (each / "initdb").exists() and (each / "postgres").exists()), None)


def _await(port: int, running: subprocess.Popen[bytes]) -> None:
    import psycopg

    until = time.monotonic() + START_S
    while True:
        assert running.poll() is None, f"postgres ended with {running.returncode}"
        try:
            psycopg.connect(f"host=127.0.0.1 port={port} user=scanlab dbname=postgres").close()
        except psycopg.OperationalError:
            assert time.monotonic() < until, f"postgres did not answer within {START_S:.0f} s"
            time.sleep(0.1)
        else:
            return
