"""Signals, turned into one exception, or into a request that the training loop honours at a step's end.

SIGUSR1, which Slurm sends ahead of a time limit or a preemption (`--signal=USR1@300`), counts as SIGTERM.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from slmctl.system.console import say
from slmctl.system.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Set by the first signal while deferred; a second signal raises at once."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.finishing = "the step"
        """What comes to its end first."""

    def __bool__(self) -> bool:
        return self.signum is not None


_deferred: StopRequest | None = None


def _handle(signum: int, _frame: FrameType | None) -> None:
    name = signal.Signals(signum).name
    signum = signal.SIGTERM if signum == signal.SIGUSR1 else signum
    if _deferred is not None:
        if _deferred.signum is None:
            _deferred.signum = signum
            say(f"{name}: finishing {_deferred.finishing}, then saving; a second signal stops at once without saving")
            return
        raise Interrupted(
            signum, f"{name}: stopped at once, without saving. Run the same command again to go on from what was saved before."
        )
    raise Interrupted(signum, f"{name}: stopped. Finished work is kept; run the same command again to go on.")


@contextmanager
def raising() -> Iterator[None]:
    """Within it a signal raises `Interrupted`. Temporary files are then removed by the `finally` of whoever wrote them."""
    old = {s: signal.signal(s, _handle) for s in _SIGNALS}
    try:
        yield
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


@contextmanager
def deferring() -> Iterator[StopRequest]:
    """Within it the first signal is only noted, for code that must reach a safe point first."""
    global _deferred
    previous, _deferred = _deferred, StopRequest()
    try:
        yield _deferred
    finally:
        _deferred = previous
