"""Which process works on something, and whether it still lives: a lease that needs no server."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Another host cannot be asked: its process is believed to live for so long after its last sign of life. The
# clocks of hosts that share a storage must agree better than this.
LEASE_S = 120.0


def this_process() -> dict[str, str | int]:
    """The signature of this process."""
    return {"host": _host(), "pid": os.getpid(), "started": _started(os.getpid())}


def holds(signature: Mapping[str, Any], silent_s: float) -> bool:
    """Whether the process that signed for something, and was last heard of `silent_s` ago, still works on it."""
    if signature["host"] != _host():
        return silent_s < LEASE_S
    return bool(_started(signature["pid"]) == signature["started"] != "")


def _host() -> str:
    """This host and the space of its process numbers: containers of one host may share its name."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str:
    """When a process was started, in the words of the system; "" where it does not run.

    A pid alone may belong to another process by now, and after a restart of the machine to any.
    """
    if Path("/proc/self/stat").exists():
        try:
            # The second field is the command in parentheses, which may hold spaces.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            state, since_boot = fields[0], fields[19]
            if state in "ZX":  # dead, and its parent has not taken notice yet
                return ""
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
