"""What is shown while a run trains: one panel on a terminal, a bar or plain lines where there is no room for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live

from slmctl.system.console import PATIENCE, Ticker, Wait, err, is_quiet, progress, say
from slmctl.training.panel import Screen, has_room, number

REFRESHES = 4
"""Times a second that the panel is drawn."""


class Monitor(Protocol):
    """Is told what a run does."""

    def step(self, record: dict[str, Any]) -> None:
        """After each step, with its record of metrics.jsonl."""

    def evaluating(self, name: str, done: int, batches: int, seconds: float) -> None:
        """Before each batch of a held-out evaluation that has taken so many seconds: `done` of a set's batches are made."""

    def evaluated(self, record: dict[str, Any]) -> None:
        """After each held-out evaluation, with its record of evals.jsonl."""

    def saving(self, step: int) -> None:
        """A checkpoint is begun."""

    def saved(self, whole: bool) -> None:
        """The checkpoint that was begun last, if any is in hand, has been written, or has failed."""


@contextmanager
def dashboard(
    name: str,
    steps: int,
    start: int,
    ranks: int = 1,
    skipped: int = 0,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Monitor]:
    """Shows a run of `steps` steps, of which `start` are done and `skipped` of those were not taken, on `console` (stderr by
    default) until the block is left.

    A panel where `has_room` and there is one process; else what `slmctl.system.console.progress` shows, and of several ranks,
    whose other processes write to the same terminal, the first one's lines alone.
    """
    if ranks > 1 or is_quiet():
        yield Lines(Ticker(name, steps, "steps", None), start)
        return
    console = console or err
    if not has_room(console):
        with progress(name, steps, "steps") as ticker:
            yield Lines(ticker, start)
        return
    screen = Screen(name, steps, start, skipped, clock)
    live = Live(screen, console=console, refresh_per_second=REFRESHES, vertical_overflow="crop")
    with Wait.giving_way(), live:
        console.show_cursor(True)  # a process that is killed cannot show it again
        yield screen


class Lines:
    """A bar, or a line now and then."""

    def __init__(self, ticker: Ticker, start: int) -> None:
        self.ticker = ticker
        self.told = -math.inf
        ticker.skip(start)

    def step(self, record: dict[str, Any]) -> None:
        self.ticker.advance(1, f"loss {number(record.get('loss'), '.3f')}")

    def evaluating(self, name: str, done: int, batches: int, seconds: float) -> None:
        if seconds < PATIENCE:
            self.told = -math.inf
        elif self.ticker.bar is not None:
            self.ticker.note(f"held-out {name} {done}/{batches}")
        elif seconds - self.told >= self.ticker.seconds:
            self.told = seconds
            say(f"{self.ticker.label}: evaluating on held-out {name}, {done:,} of {batches:,} batches ({seconds:.0f} s so far)")

    def evaluated(self, record: dict[str, Any]) -> None:
        pass

    def saving(self, step: int) -> None:
        pass

    def saved(self, whole: bool) -> None:
        pass
