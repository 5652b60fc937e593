"""The allocator's habits on a CPU, where a step or a reader allocates and frees the same large blocks again and again."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

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
