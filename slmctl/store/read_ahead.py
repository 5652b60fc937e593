"""Reading ahead: what step s needs is a pure function of s, so threads may fetch the next steps while this one trains."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """`get(step)` returns `fetch(step)`; steps after it, up to `last`, are fetched meanwhile by `threads` threads.

    How many threads there are changes nothing about what is returned. 0 fetches when asked.
    """

    def __init__(self, fetch: Callable[[int], T], last: int, threads: int) -> None:
        self.fetch, self.last, self.threads = fetch, last, threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead") if threads else None
        self._ahead: dict[int, Future[T]] = {}

    def get(self, step: int) -> T:
        """Raises whatever fetching that step raised."""
        if self._pool is None:
            return self.fetch(step)
        for stale in [s for s in self._ahead if s < step]:
            self._ahead.pop(stale).cancel()
        for s in range(step, max(step, min(step + self.threads, self.last)) + 1):
            if s not in self._ahead:
                self._ahead[s] = self._pool.submit(self.fetch, s)
        return self._ahead.pop(step).result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
