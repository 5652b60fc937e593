"""The order of rows is arithmetic: a pure function of (seed, epoch, position), with no state to save.

An epoch permutes the row groups of the whole set, takes them `window` at a time, and permutes the rows within each such
window. So every row is visited exactly once an epoch, and a reader holds one window in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

ORDER_VERSION = 2
"""Of the orders of rows, and of what else a run draws by seed. A run of another version is begun anew: its steps would be
others from here on."""


def permutation(n: int, *key: int | str) -> np.ndarray:
    """A permutation of n that depends on `key` alone. Raw Philox words are sorted: their stream is fixed by NumPy's
    compatibility promise, which does not cover `Generator.permutation`."""
    plain = tuple(k if isinstance(k, str) else int(k) for k in key)
    digest = hashlib.sha256(repr(plain).encode()).digest()
    words = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(n)
    order: np.ndarray = np.argsort(words, kind="stable")
    return order


def mix_seed(*key: int | str) -> int:
    """A 63-bit seed from several numbers and names. Of keys that begin with other names the seeds are others: orders and draws
    of different purposes share nothing, whatever the seed that a user gives."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little") >> 1


def rank_slice(step: int, rows_per_step: int, rank: int, world_size: int) -> tuple[int, int]:
    """Positions [start, stop) of the order that rank `rank` reads for step `step` (from 1): the ranks' slices lie end to
    end, so a step's rows are the same at any world size. `world_size` must divide `rows_per_step`."""
    if rows_per_step % world_size:
        raise ValueError(f"{rows_per_step} rows cannot be shared evenly by {world_size} ranks")
    share = rows_per_step // world_size
    start = (step - 1) * rows_per_step + rank * share
    return start, start + share


@dataclass(frozen=True)
class Part:
    """Positions of the order that lie in one window. `within` are places among the window's rows, its groups end to end."""

    epoch: int
    window: int
    within: np.ndarray


class RowOrder:
    """Visits the rows of one set, whose row groups hold `group_rows` rows each, in manifest order."""

    def __init__(self, group_rows: np.ndarray, seed: int, window: int = 16) -> None:
        self.group_rows = np.asarray(group_rows, dtype=np.int64)
        self.first_row = np.concatenate([[0], np.cumsum(self.group_rows)])
        self.rows = int(self.first_row[-1])
        self.seed, self.window = seed, window
        self._epoch = lru_cache(maxsize=2)(self._plan_epoch)
        self._places = lru_cache(maxsize=4)(self._shuffle)

    def _plan_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Row groups in the order of the epoch, and the position at which each window starts."""
        groups = permutation(len(self.group_rows), self.seed, "groups", epoch)
        sizes = np.add.reduceat(self.group_rows[groups], np.arange(0, len(groups), self.window))
        return groups, np.concatenate([[0], np.cumsum(sizes)])

    def groups(self, epoch: int, window: int) -> np.ndarray:
        """The row groups of a window, in the order in which its rows are counted."""
        return self._epoch(epoch)[0][window * self.window : (window + 1) * self.window]

    def window_after(self, epoch: int, window: int) -> tuple[int, int]:
        """(epoch, window) that follows."""
        return (epoch, window + 1) if window + 2 < len(self._epoch(epoch)[1]) else (epoch + 1, 0)

    def _shuffle(self, epoch: int, window: int) -> np.ndarray:
        return permutation(int(self.group_rows[self.groups(epoch, window)].sum()), self.seed, "rows", epoch, window)

    def parts(self, start: int, stop: int) -> Iterator[Part]:
        """Positions [start, stop) of the endless sequence of epochs, window by window."""
        while start < stop:
            epoch, position = divmod(start, self.rows)
            _, bounds = self._epoch(epoch)
            window = int(np.searchsorted(bounds, position, side="right")) - 1
            end = min(int(bounds[window + 1]), position + stop - start)
            yield Part(epoch, window, self._places(epoch, window)[position - bounds[window] : end - bounds[window]])
            start += end - position

    def at(self, start: int, stop: int) -> np.ndarray:
        """Row numbers at positions [start, stop). [stop - start] int64."""
        found = [np.zeros(0, dtype=np.int64)]
        for part in self.parts(start, stop):
            groups = self.groups(part.epoch, part.window)
            rows = np.concatenate([np.arange(self.first_row[g], self.first_row[g + 1]) for g in groups])
            found.append(rows[part.within])
        return np.concatenate(found)


class MixedOrder:
    """Interleaves all rows of a first set with a share `mix` of rows from a second, anew in each epoch.

    An epoch holds every row of the first set once and m rows of the second, m / (m + first) = mix; the following epoch
    takes the next m rows of the second set's own order.
    """

    def __init__(self, first: RowOrder, second: RowOrder, mix: float, seed: int) -> None:
        self.first, self.second, self.seed = first, second, seed
        self.extra = round(first.rows * mix / (1 - mix))
        self.rows = first.rows + self.extra
        self._slots = lru_cache(maxsize=2)(self._plan_epoch)

    def _plan_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """For each position: is it a row of the second set; and how many of those come before it. [rows], [rows + 1]"""
        second = permutation(self.rows, self.seed, "mix", epoch) >= self.first.rows
        return second, np.concatenate([[0], np.cumsum(second)])

    def parts(self, start: int, stop: int) -> Iterator[tuple[np.ndarray, tuple[int, int], tuple[int, int]]]:
        """For positions [start, stop), epoch by epoch: which of them are rows of the second set; and the positions in the
        first set's own order, and in the second's, that fill them."""
        while start < stop:
            epoch, position = divmod(start, self.rows)
            end = min(self.rows, position + stop - start)
            second, before = self._slots(epoch)
            a, b = int(before[position]), int(before[end])
            ones, others = epoch * self.first.rows, epoch * self.extra
            yield second[position:end], (ones + position - a, ones + end - b), (others + a, others + b)
            start += end - position

    def at(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(set number 0 or 1, row number), each [stop - start], at positions [start, stop)."""
        sets, rows = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for second, ones, others in self.parts(start, stop):
            found = np.empty(len(second), dtype=np.int64)
            found[~second], found[second] = self.first.at(*ones), self.second.at(*others)
            sets.append(second.astype(np.int64))
            rows.append(found)
        return np.concatenate(sets), np.concatenate(rows)
