"""Identity of a process across hosts, and whether it is still alive: leases without a server."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# A process of another host cannot be looked up: it counts as alive for this long after its last heartbeat.
LEASE_S = 120.0
# Beyond every process; what others wrote may hold any number.
MAX_PID = 1 << 31


def this_process() -> dict[str, str | int]:
    """Return the identity of this process as JSON values."""
    return {"host": host(), "pid": os.getpid(), "started": process_start(os.getpid())}


def is_alive(identity: Mapping[str, Any], silent_s: float) -> bool:
    """Return whether a process still works on its lease.

    Args:
        identity: Result of `this_process` there.
        silent_s: Seconds since its last heartbeat.
    """
    if identity.get("host") != host():
        return silent_s < LEASE_S
    pid = identity.get("pid")
    return isinstance(pid, int) and 0 < pid < MAX_PID and process_start(pid) == identity.get("started") != ""


def process_start(pid: int) -> str:
    """Return when a process was started, as the system spells it; "" if it does not run.

    A pid alone may belong to another process by now, and after a restart of the machine to any.
    """
    if Path("/proc/self/stat").exists():
        try:
            # The second field is the command in parentheses, which may hold spaces.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            state, since_boot = fields[0], fields[19]
            if state in "ZX":  # dead, and not yet waited for by its parent
                return ""
            return f"{since_boot} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
        except OSError:
            return ""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return ""
    except PermissionError:
        pass
    return "running"


def host() -> str:
    """Return the host name and the PID namespace: containers of one host may share its name."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()
