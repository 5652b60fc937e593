"""Memory of the machine: what there is, and the allocator's habits, where the same large blocks come and go each step."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@cache
def keep_freed_blocks() -> None:
    """Has glibc keep blocks of up to 1 GiB that are freed, instead of giving each back to the system, which then has
    to clear its pages when the next chunk asks for them. Does nothing on other C libraries."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 2**30)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def processes_here() -> int:
    """How many processes torchrun has started on this machine, which share its memory."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def memory_limit() -> int:
    """Bytes that this process and those beside it in its container may take."""
    return min([_meminfo("MemTotal"), *(limit for limit, _ in _cgroups())])


def memory_available() -> int:
    """Bytes that may still be taken, as the machine and the containers that this process runs in see it."""
    return max(0, min([_meminfo("MemAvailable"), *(limit - used for limit, used in _cgroups())]))


def _meminfo(key: str) -> int:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    with suppress(OSError, ValueError):  # not on Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 4 * 2**30


def _cgroups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of each control group around this process that has a limit (versions 1 and 2); files that
    are cached and could be dropped are not counted as used."""
    lines = own.read_text().splitlines() if own.is_file() else []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        top = root / kinds
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
        here = top / path.lstrip("/")
        for group in (here, *here.parents):
            with suppress(OSError, ValueError):  # absent, or "max"
                limit, used = (int((group / n).read_text()) for n in names)
                stat = dict(s.split() for s in (group / "memory.stat").read_text().splitlines())
                yield limit, used - int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
            if group == top:
                break
