"""What a person sees while a command runs: progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

err = Console(stderr=True, highlight=False, soft_wrap=True)
out = Console(highlight=False)


_quiet = False


@contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """Within it nothing is said: of several ranks one speaks for all."""
    global _quiet
    before, _quiet = _quiet, on or _quiet
    try:
        yield
    finally:
        _quiet = before


def is_quiet() -> bool:
    return _quiet


def say(message: str) -> None:
    """Prints one plain line to stderr; markup in `message` is shown as text."""
    if not _quiet:
        err.print(message, markup=False)


def warn(message: str) -> None:
    if not _quiet:
        err.print(f"warning: {message}", style="yellow", markup=False)


class Ticker:
    """Counts towards `total`, and shows it: a bar on a terminal, a line every `seconds` elsewhere."""

    def __init__(self, label: str, total: int, unit: str, bar: Progress | None, seconds: float = 15.0) -> None:
        self.label, self.total, self.unit, self.bar, self.seconds = label, total, unit, bar, seconds
        self.done = self.before = 0
        self.started = self.last = time.monotonic()
        self.task = bar.add_task(label, total=total, note="") if bar else None

    def skip(self, n: int) -> None:
        """`n` were done before: they count, but not as this process's speed."""
        self.done, self.before = self.done + n, self.before + n
        if self.bar is not None and self.task is not None:
            self.bar.reset(self.task, completed=self.done)

    def advance(self, n: int, note: str = "") -> None:
        self.done += n
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=self.done, note=note)
            return
        now = time.monotonic()
        if now - self.last >= self.seconds:
            self.last = now
            rate = (self.done - self.before) / max(now - self.started, 1e-9)
            speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}"
            say(f"{self.label}: {self.done:,}/{self.total:,} {self.unit} ({speed}/s) {note}".rstrip())


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Ticker]:
    """Yields a `Ticker` for `total` `unit`s of work."""
    if _quiet or not sys.stderr.isatty() or err.is_dumb_terminal:
        yield Ticker(label, total, unit, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=err) as bar:
        yield Ticker(label, total, unit, bar)
