"""Rows in an epoch's order: a window's row groups lie side by side in memory, and the next window's are read meanwhile.

A window's groups are decoded straight to their places in it, and a batch is gathered from it in one call; both without
Python's lock, so that threads do them side by side.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from slmctl.store.order import Part, RowOrder
from slmctl.store.reader import RowReader, Rows

KEPT = 3
"""Windows in memory: the one in use, the next one, and one that a slower thread may still read from."""


class Window:
    """One window's rows as they are stored, [rows, T], which are whole once every group is."""

    def __init__(self, reader: RowReader, groups: np.ndarray, pool: ThreadPoolExecutor | None) -> None:
        sizes = reader.tokens.group_rows[groups]
        ends = np.cumsum(sizes)
        self._rows = reader.blank(int(ends[-1]))
        places = [(int(g), self._rows.part(int(end - n), int(end))) for g, end, n in zip(groups, ends, sizes, strict=True)]
        self._groups: list[Future[None]] = []
        self._work = None
        if pool is not None:
            self._groups = [pool.submit(reader.read_into, g, room) for g, room in places]
        else:
            for g, room in places:
                reader.read_into(g, room)

    def rows(self) -> Rows:
        """Raises whatever the reading raised."""
        for group in self._groups:
            group.result()
        return self._rows


class WindowReader:
    """Rows by position in the endless order of epochs.

    `threads` decode row groups, of the window after the one in use too; 0 decodes when asked. Any number of threads may fetch.
    """

    def __init__(self, reader: RowReader, order: RowOrder, threads: int = 0) -> None:
        self.reader, self.order = reader, order
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="windows") if threads else None
        self._windows: OrderedDict[tuple[int, int], Window] = OrderedDict()
        self._lock = threading.Lock()

    def blank(self, rows: int) -> Rows:
        return self.reader.blank(rows)

    def fetch(self, start: int, stop: int, out: Rows | None = None) -> Rows:
        """The rows at positions [start, stop), written to `out` (as `blank` makes it)."""
        out = out or self.blank(stop - start)
        at = 0
        for part in self.order.parts(start, stop):
            self._window(part).gather(part.within, out.part(at, at + len(part.within)))
            at += len(part.within)
        return out

    def _window(self, part: Part) -> Rows:
        with self._lock:
            found = self._hold(part.epoch, part.window)
            if self._pool is not None:
                self._hold(*self.order.window_after(part.epoch, part.window))
                self._windows.move_to_end((part.epoch, part.window))
            while len(self._windows) > KEPT:
                self._windows.popitem(last=False)
        try:
            return found.rows()
        except BaseException:
            with self._lock:
                self._windows.pop((part.epoch, part.window), None)  # so that it is read again, should it be asked for
            raise

    def _hold(self, epoch: int, window: int) -> Window:
        key = (epoch, window)
        if key not in self._windows:
            self._windows[key] = Window(self.reader, self.order.groups(epoch, window), self._pool)
        self._windows.move_to_end(key)
        return self._windows[key]

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
