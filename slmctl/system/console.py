"""What a person sees while a command runs: progress bars on a terminal, plain lines elsewhere, and what is waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import ClassVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.text import Text

PATIENCE = 3.0
"""Seconds after which it is said what is waited for."""
AGAIN = 30.0
"""Seconds after which it is said again, where there is no terminal to show the time on."""

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


_told: dict[str, str] = {}
"""What was last said of each subject."""


def say_if_new(subject: str, news: str, message: str) -> None:
    """`say`, unless the same news were the last of this subject in this process: several stages would repeat them."""
    if not _quiet and _told.get(subject) != news:
        _told[subject] = news
        say(message)


class Wait:
    """Says what is waited for, once it has taken `seconds`: beside a spinner on a terminal, else as a line, and again every
    `again` seconds. Of waits within each other the innermost speaks; where a bar or panel is shown, only in lines."""

    _all: ClassVar[list[Wait]] = []
    """Those that are going on, outermost first."""
    _shown = 0
    """Bars and panels on the terminal."""
    _lock = threading.RLock()

    def __init__(self, what: str | Callable[[], str], seconds: float, again: float = AGAIN) -> None:
        self.what, self.seconds, self.again = what, seconds, again
        self._ended = threading.Event()
        self._spinner: Status | None = None
        self._quiet_until = 0.0
        self._began = monotonic()
        with self._lock:
            for other in self._all:
                other._clear()
            self._all.append(self)
        self.put_off(seconds)
        threading.Thread(target=self._watch, name="waiting", daemon=True).start()

    def put_off(self, seconds: float) -> None:
        """Something else was just said: there is no need to speak for so long."""
        self._quiet_until = monotonic() + seconds

    def end(self) -> None:
        self._ended.set()
        with self._lock:
            self._all.remove(self)
            self._clear()

    def _watch(self) -> None:
        pause = min(1.0, self.seconds)
        while not self._ended.wait(min(pause, max(0.01, self._quiet_until - monotonic()))):
            with self._lock:
                if self._ended.is_set():
                    return
                if self._all[-1] is self and monotonic() >= self._quiet_until:
                    self._tell(pause)

    def _tell(self, pause: float) -> None:
        text = self.what if isinstance(self.what, str) else self.what()
        took = monotonic() - self._began
        text = f"{text} … ({took:.0f} s)" if took >= self.seconds + 1 else f"{text} …"
        if _plain() or Wait._shown:
            say(text)
            self.put_off(self.again)
            return
        self.put_off(pause)
        if self._spinner is None:
            self._spinner = Status("", console=err)
            self._spinner.start()
        self._spinner.update(Text(text))

    def _clear(self) -> None:
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None

    @classmethod
    @contextmanager
    def giving_way(cls) -> Iterator[None]:
        """Within it something else draws on the terminal: no spinner does."""
        with cls._lock:
            cls._shown += 1
            for wait in cls._all:
                wait._clear()
        try:
            yield
        finally:
            with cls._lock:
                cls._shown -= 1


@contextmanager
def waiting(what: str | Callable[[], str], seconds: float | None = None) -> Iterator[Wait]:
    """Says `what` is done within the block, should that take longer than `seconds` (`PATIENCE`); nothing of what is quick."""
    wait = Wait(what, PATIENCE if seconds is None else seconds)
    try:
        yield wait
    finally:
        wait.end()


def _plain() -> bool:
    """Whether nothing can be drawn."""
    return _quiet or not err.file.isatty() or err.is_dumb_terminal


class Ticker:
    """Counts towards `total`, and shows it: a bar on a terminal, elsewhere a line after a moment and then every `seconds`."""

    def __init__(
        self, label: str, total: int, unit: str, bar: Progress | None, seconds: float = 15.0, wait: Wait | None = None
    ) -> None:
        self.label, self.total, self.unit, self.bar, self.seconds, self.wait = label, total, unit, bar, seconds, wait
        self.done = self.before = 0
        self.started = time.monotonic()
        self.last = self.started
        self.task = bar.add_task(label, total=total, note="") if bar else None

    def skip(self, n: int) -> None:
        """`n` were done before: they count, but not as this process's speed."""
        self.done, self.before = self.done + n, self.before + n
        if self.bar is not None and self.task is not None:
            self.bar.reset(self.task, completed=self.done)

    def advance(self, n: int, note: str = "") -> None:
        self.done += n
        self.note(note)

    def note(self, note: str) -> None:
        """The same with nothing more done."""
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=self.done, note=note)
            return
        now = time.monotonic()
        if now - self.last >= self.seconds:
            self.last = now
            say(f"{self.text()} {note}".rstrip())
            if self.wait is not None:
                self.wait.put_off(AGAIN)

    def text(self) -> str:
        rate = (self.done - self.before) / max(time.monotonic() - self.started, 1e-9)
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}"
        return f"{self.label}: {self.done:,}/{self.total:,} {self.unit} ({speed}/s)"


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Ticker]:
    """Yields a `Ticker` for `total` `unit`s of work."""
    if _plain():
        ticker = Ticker(label, total, unit, None)
        with waiting(ticker.text) as ticker.wait:
            yield ticker
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    bar = Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=err)
    with Wait.giving_way(), bar:
        yield Ticker(label, total, unit, bar)
