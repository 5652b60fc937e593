"""Jobs for processes that are spawned: in a module that they can import in no time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from slmctl.system.errors import InputError


def setup(_threads: int) -> Callable[[str], str]:
    return work


def broken_setup(_threads: int) -> Callable[[str], str]:
    raise InputError("cannot be set up")


def work(job: str) -> str:
    if job == "refuse late":
        time.sleep(0.5)
    if job.startswith("refuse"):
        raise InputError("no such thing")
    if job == "raise":
        raise OSError(5, "disk on fire")
    if job == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "exit":
        os._exit(3)
    if job == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    return job
