"""Items in lists of bounded size, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def bounded_batches(items: Iterable[T], size_of: Callable[[T], int], limit: int, most: int | None = None) -> Iterator[list[T]]:
    """Items in their order, in lists that end with the item that brings their sizes to `limit` together, or their number to
    `most`."""
    held: list[T] = []
    size = 0
    for item in items:
        held.append(item)
        size += size_of(item)
        if size >= limit or len(held) == most:
            yield held
            held, size = [], 0
    if held:
        yield held
