"""Which process works on something, and whether it still lives: a lease that needs no server."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Another host cannot be asked: it is believed to work on for so long.
LEASE_S = 3600.0
# Between taking something and signing for it a process has so long.
SIGNING_S = 10.0


def this_process() -> dict[str, str | int]:
    """The signature of this process."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def holds(signature: Mapping[str, Any] | None, age_s: float) -> bool:
    """Whether the process that signed for something `age_s` ago still works on it; None where nobody signed."""
    if signature is None:
        return age_s < SIGNING_S
    if signature["host"] != socket.gethostname():
        return age_s < LEASE_S
    return bool(_started(signature["pid"]) == signature["started"] != "")


def _started(pid: int) -> str:
    """When a process was started, in the words of the system; "" where it does not run.

    A pid alone may belong to another process by now, and after a restart of the machine to any.
    """
    if Path("/proc/self/stat").exists():
        try:
            # The second field is the command in parentheses, which may hold spaces.
            since_boot = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
            return f"{since_boot} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
        except OSError:
            return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "running"
