"""Who holds a lease: a name for this process, and whether the process behind a name is gone."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
import uuid
from pathlib import Path


def new_owner() -> str:
    """`host:pid:start-uuid` of this process: who it is, and enough to see from this host that it is gone."""
    return f"{host_id()}:{os.getpid()}:{_start_ticks(os.getpid()) or 0}-{uuid.uuid4().hex[:12]}"


@functools.cache
def host_id() -> str:
    """The host's name and a mark of its boot and process namespace: only there a pid means anything."""
    marks = [socket.gethostname()]
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        path = Path(source)
        if path.is_symlink():
            marks.append(os.readlink(path))
        elif path.exists():
            marks.append(path.read_text().strip())
    return f"{marks[0]}-{hashlib.sha256('|'.join(marks).encode()).hexdigest()[:8]}"


def host_of(owner: str) -> str:
    """The host's name in an owner, for people."""
    return owner.partition(":")[0].rpartition("-")[0]


def is_gone(owner: str) -> bool:
    """Whether the process behind `owner` has certainly ended; False for other hosts."""
    host, _, rest = owner.partition(":")
    pid, _, token = rest.partition(":")
    if host != host_id() or not pid.isdecimal():
        return False
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False
    ticks = _start_ticks(int(pid))
    return ticks is None or str(ticks) != token.partition("-")[0]


def _start_ticks(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process; None where it has ended (a zombie has)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
