"""Files that are not finished yet: their names say which process writes them, so that what a killed one left can be swept."""

from __future__ import annotations

import hashlib
import os
import platform
import time
import uuid
from functools import cache
from pathlib import Path

TEMPORARY = ".tmp-"
"""How their names begin."""
ABANDONED_AFTER = 6 * 3600
"""Seconds without a write after which the file of a process on another machine counts as left behind."""


def temporary_beside(final: Path) -> Path:
    """A name for writing `final`, that says which process writes it."""
    return final.with_name(f"{TEMPORARY}{final.name}.{_host()}.{_process(os.getpid())}.{uuid.uuid4().hex[:8]}")


def is_temporary(path: Path) -> bool:
    return path.name.startswith(TEMPORARY)


def is_abandoned(temporary: Path) -> bool:
    """Whether the writer of a temporary file is gone: on this machine the process has ended (a hung one has not);
    of another machine's, nothing was written for `ABANDONED_AFTER` seconds."""
    parts = temporary.name.split(".")
    host, process = (parts[-3], parts[-2]) if len(parts) >= 4 else ("", "")
    if host == _host() and (pid := process.partition("-")[0]).isdigit():
        return not _lives(int(pid), process)
    try:
        return time.time() - temporary.stat().st_mtime > ABANDONED_AFTER
    except FileNotFoundError:
        return False


@cache
def _host() -> str:
    """This boot of this machine and this process namespace: within it a process number means one process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        boot = platform.node()
    return hashlib.sha256(boot.encode()).hexdigest()[:8]


def _process(pid: int) -> str:
    """A process by number and start time, so that a number used again is told apart; empty where it has ended or cannot be
    looked at."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{pid}-{stat[19]}" if stat[0] not in "ZX" else ""
    except OSError:
        return "" if Path("/proc/self/stat").exists() else f"{pid}-0"


def _lives(pid: int, process: str) -> bool:
    if found := _process(pid):
        if found != process:
            return False
        if not found.endswith("-0"):
            return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's, which a hardened /proc does not show
        return True
    return bool(found)
