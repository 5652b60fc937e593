"""Whether other processes keep this one from the cores."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


class CpuContention:
    """How long this thread has had work but no core, of all the time since this was made (Linux)."""

    def __init__(self, file: Path = Path("/proc/thread-self/schedstat"), clock: Callable[[], float] = time.monotonic) -> None:
        self.file, self.clock = file, clock
        self.began, self.before = clock(), self._waited()

    def share(self) -> float | None:
        """Between 0 and 1; None where the system does not tell."""
        waited, took = self._waited(), self.seconds()
        return min(1.0, (waited - self.before) / took) if waited is not None and self.before is not None and took > 0 else None

    def seconds(self) -> float:
        """Since this was made."""
        return self.clock() - self.began

    def _waited(self) -> float | None:
        """Seconds in the queue for a core."""
        try:
            return int(self.file.read_text().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return None
